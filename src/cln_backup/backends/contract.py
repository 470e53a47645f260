"""The contract of a history: a place that holds one node's backup, its readers and its writer.

A place (`place_at(url)`) is opened to read or to write. Both get the secret that unlocks it, and a
receiver of events, as arguments; neither is stored elsewhere. A call that may wait for an
unreachable storage takes a `timeout_s`; `None` means the deadline in the URL. A storage of this
machine is never waited for.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from cln_backup.backends.events import ignore
from cln_backup.backends.ticket import MoreNeeded
from cln_backup.model.errors import BadUrl
from cln_backup.storage import interruption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType

    from typing_extensions import Self

    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.inventory import Inventory
    from cln_backup.backends.opening import Opening
    from cln_backup.backends.secrets import Secret
    from cln_backup.backends.ticket import Folded, Statistics, Ticket
    from cln_backup.model.change import Change, Head
    from cln_backup.model.position import Position


class Standing(NamedTuple):
    """The state of a backup at one moment (immutable).

    Attributes:
        position: of the head, the last change.
        version_count: number of changes in the backup.
        prev_version: the data version that `rewind` goes back to; 0 if there is none.
        head: the last change; `None` in an empty backup.
        droppable: whether `rewind` can drop the head, as far as the storage tells.
        epoch: number of the last writer; 0 if the format does not count them.
        origin: position after the backup's first change, if that is a snapshot that replaces
            earlier changes; `None` if unknown.
    """

    position: Position
    version_count: int
    prev_version: int
    head: Head | None
    droppable: bool
    epoch: int
    origin: Position | None = None

    @property
    def version(self) -> int:
        """Data version of the head; 0 in an empty backup."""
        return self.position.version


class LastChange(NamedTuple):
    """When the head was stored.

    Attributes:
        at: in seconds since 1970; `None` if unknown.
        by_file: whether that is only a file's modification time, which programs that copy files
            may change.
    """

    at: float | None
    by_file: bool


class Key(NamedTuple):
    """A key slot: one way to unlock a backup.

    Attributes:
        label: its name.
        kind: `passphrase`, `key-file` or `hsm-secret`.
        created_at: seconds since 1970.
    """

    label: str
    kind: str
    created_at: float


class Place(ABC):
    """The place of a backup, existing or new.

    Attributes:
        url: as given.
        can_encrypt: whether the format supports encryption; otherwise methods about keys raise.
    """

    can_encrypt: ClassVar[bool] = False

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def storage_dir(self) -> str | None:
        """A directory on the disk of the backup; `None` for a server's backup."""
        return None

    @property
    def scratch_dir(self) -> str | None:
        """A directory beside the backup for a temporary, unencrypted copy of the database.

        `None` if there is none: for a server's backup, and for an encrypted one.
        """
        return self.storage_dir

    @abstractmethod
    def creating(
        self,
        base: Change | None = None,
        *,
        origin: Position | None = None,
        secret: Secret | None = None,
        hidden: bool = False,
    ) -> AbstractContextManager[Place]:
        """Makes a new backup, empty or with a first snapshot, and removes it if the block fails.

        `origin` is the position after the snapshot, for a copy of a compacted history. Without it,
        or if the format cannot store it, the snapshot starts a new history.

        Durable, with its name, when the block starts; before that, there is nothing at the place.
        With `hidden` it appears, durable, when the block ends; inside, it is at the yielded place.
        A server can neither hide nor remove a backup; then the place itself is yielded.

        Raises:
            AlreadyExists: the place is not empty; nothing was changed.
            BadUrl, BadChange, StorageError: nothing was made.
        """

    @abstractmethod
    def open_reader(
        self,
        *,
        secret: Secret | None = None,
        on_event: OnEvent = ignore,
        timeout_s: float | None = None,
        accept_incomplete: bool = False,
    ) -> Reader:
        """Opens the backup to read; leftovers of a crash are ignored, not repaired.

        With `accept_incomplete`, a reader accepts a copy whose end is missing.

        Raises:
            NotFound: there is no backup at the place.
            Damaged: the backup contains invalid bytes.
            Locked, BadUrl, StorageError.
        """

    def open_writer(
        self,
        node_id: str | None = None,
        *,
        secret: Secret | None = None,
        on_event: OnEvent = ignore,
        timeout_s: float | None = None,
    ) -> Writer:
        """Opens the backup to write, and repairs what a crash left.

        With a `node_id`, only if the backup belongs to this node or to none yet (`Writer.claim`).

        Raises:
            WriterConflict: another process is the writer.
            Discontinuity: the backup belongs to another node.
            NotFound, Damaged, Locked, BadUrl, StorageError: nothing was changed.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        writer = self._open_writer(secret, on_event, timeout_s)
        if node_id is not None:
            try:
                writer.claim(node_id, None if until is None else until - time.monotonic())
            except BaseException:
                writer.close()
                raise
        return writer

    @abstractmethod
    def _open_writer(
        self, secret: Secret | None, on_event: OnEvent, timeout_s: float | None
    ) -> Writer:
        """See `open_writer`."""

    def keys(self) -> list[Key]:
        """All key slots; the backup need not be unlocked.

        Raises:
            BadUrl: this format cannot be encrypted.
            NotFound, Damaged, StorageError.
        """
        raise self._cannot_encrypt()

    def add_key(self, added: Secret, label: str, *, secret: Secret | None = None) -> None:  # noqa: ARG002
        """Adds a key slot for another secret; on stable storage when it returns.

        Raises:
            Locked: the backup is not unlocked, or not encrypted.
            AlreadyExists: there is a key slot of this name.
            BadUrl, StorageError.
        """
        raise self._cannot_encrypt()

    def remove_key(self, label: str) -> None:  # noqa: ARG002
        """Removes a key slot; on stable storage when it returns.

        Raises:
            NotFound, Locked, BadUrl: nothing was changed.
        """
        raise self._cannot_encrypt()

    def usage(self) -> Inventory | None:
        """The inventory of the backup, which need not be unlocked.

        `None` for a server's backup.

        Raises:
            NotFound, Damaged, BadUrl, StorageError.
        """
        return None

    def compact(
        self,
        fold: Callable[[Reader], Folded],
        *,
        if_it_pays: bool = False,
        secret: Secret | None = None,
        on_event: OnEvent = ignore,
    ) -> Statistics:
        """Compacts a backup that no node writes to; a server's even while one does.

        `fold` is as for `Reader.prepare_compaction`. With `if_it_pays`, the backup is not changed
        if a compaction is not worth it (`Ticket.pays`).

        Raises:
            WriterConflict: a node writes to it.
            NotFound, Damaged, StorageError, and errors of `fold`: the backup is unchanged.
        """
        with (
            interruption.deferred(),
            self.open_writer(secret=secret, on_event=on_event) as writer,
            self.open_reader(secret=secret) as reader,
        ):
            ticket = reader.prepare_compaction(fold)
            if if_it_pays and ticket.done is None and not ticket.pays():
                reader.discard(ticket)
                return {"before": ticket.before, "after": ticket.before, "would_be": ticket.after}
            with interruption.held():
                done = writer.take_over(ticket)
                interruption.finished()
            assert not isinstance(done, MoreNeeded), "no change was appended"
            return done

    def _cannot_encrypt(self) -> BadUrl:
        scheme = self.url.partition(":")[0]
        return BadUrl(f"A {scheme}: backup cannot be encrypted; only a dir: backup can.")


class Backend(ABC):
    """An open backup, to read or to write.

    Attributes:
        place: of the backup.
    """

    place: Place

    @property
    @abstractmethod
    def standing(self) -> Standing:
        """The current state of the backup."""

    @property
    def version(self) -> int:
        """Data version of the head; 0 in an empty backup."""
        return self.standing.version

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """The size of the backup on its storage; computed by this call."""

    @property
    @abstractmethod
    def last_change(self) -> LastChange:
        """When the head was stored."""

    @abstractmethod
    def close(self) -> None:
        """Releases the backup, and the right to write. Nothing is written."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Reader(Backend):
    """A backup as it was when it was opened, or when `wait_for_more` last found a change.

    Several may be open at the same time, also beside a writer, and in other processes.
    """

    @property
    def opening(self) -> Opening | None:
        """The arguments with which another process of this program opens the same backup.

        `None` for a server's backup: its connection is the bottleneck already.
        """
        return None

    @property
    def node_id(self) -> str | None:
        """The node that the backup belongs to; `None` if unknown."""
        return None

    @abstractmethod
    def stream_changes(
        self, start: int = 0, *, after: Position | None = None, head: bool = True
    ) -> Iterator[Change]:
        """The changes from version `start` on, or those `after` a position, in order.

        Each has the time at which it was stored, 0 if unknown.
        Memory does not grow with the backup; a snapshot must be read before the next change is
        requested. With `head=False` the last change is left out.

        Raises:
            Discontinuity: the position is no longer in this history: its change was dropped, or a
                compaction has folded it.
            Damaged, StorageError.
        """

    @abstractmethod
    def wait_for_more(self, timeout_s: float) -> bool:
        """Waits until the backup differs from this reader's view, and updates the view.

        Returns at once if it already differs; `False` if it is still the same at the timeout.
        Woken by the file system if possible; a storage without notifications is polled. Streams
        that were started before cannot be used afterwards.

        Raises:
            Damaged, StorageError: as when it is opened.
        """

    def check(self, progress: Callable[[Change], None] | None = None) -> None:
        """Reads the whole backup, and checks everything that can be checked without a replay.

        A backend whose format has checksums may do so without decoding the changes; then
        `progress` is not called.

        Raises:
            Damaged, StorageError.
        """
        for change in self.stream_changes():
            if change.snapshot is not None:
                for _ in change.snapshot.chunks():
                    pass
            if progress is not None:
                progress(change)

    def dropped_changes(self) -> Iterator[Change]:
        """The changes that `rewind` dropped, if they are kept inside the backup.

        Raises:
            BadUrl: this backend keeps them elsewhere; the message says where.
            Damaged, StorageError.
        """
        raise BadUrl(
            "Only a dir: backup lists its dropped changes. A file: backup keeps each in a file of "
            "its own beside it, NAME.dropped-VERSION; on a server, these files are beside the "
            "backup there."
        )

    @abstractmethod
    def prepare_compaction(self, fold: Callable[[Reader], Folded]) -> Ticket:
        """Builds a replacement beside the backup: a base, then the head.

        It does not block writers, and may run in a different process than the writer. `fold` makes
        the base from the changes before the head; it is called at most once, and its snapshot is
        read before this returns. A server compacts by itself and needs no base.

        Raises:
            StorageError, and errors of `fold`: the unfinished replacement was removed.
        """

    @abstractmethod
    def prepare_more(self, ticket: Ticket) -> Ticket:
        """Continues when `Writer.take_over` needs more. Otherwise as `prepare_compaction`."""

    @abstractmethod
    def discard(self, ticket: Ticket) -> None:
        """Removes a prepared replacement; the backup is unchanged."""


class Writer(Backend):
    """The only process that may change a backup: it appends changes and may drop the head.

    After a failed write or sync it refuses everything: the backup must be opened again to find out
    what reached the disk.
    """

    @abstractmethod
    def claim(self, node_id: str, timeout_s: float | None = None) -> None:
        """Makes sure that the backup belongs to this node.

        Call it before the first change, with which the node is recorded if the format supports
        it. Part of `Place.open_writer`; a server has the backup open before it knows the node.

        Raises:
            Discontinuity: it belongs to another node.
            StorageError: the node cannot be recorded.
        """

    def add_change(self, change: Change, timeout_s: float | None = None) -> None:
        """Appends a change; it is on stable storage when this returns.

        A change with a time of storage keeps it, if the format stores times. The change must
        follow the head: a transaction has `version + 1`, a rider `version`, a snapshot any
        version from the head's on. Do not retry after an error: a second sync cannot repair a
        failed one.

        Raises:
            Discontinuity, BadChange: nothing was written.
            StorageError: the change may or may not be there; this writer is finished.
        """
        self.store_change(change, timeout_s)
        self.settle()

    @abstractmethod
    def store_change(self, change: Change, timeout_s: float | None = None) -> None:
        """The part of `add_change` that a node waits for: then the change is on stable storage.

        Call `settle` before anything else.
        """

    def settle(self) -> None:
        """The rest of `add_change`: bookkeeping that need not be durable.

        Raises:
            StorageError: the change is stored; this writer is finished.
        """

    @abstractmethod
    def rewind(self, timeout_s: float | None = None) -> None:
        """Drops the head, which the node did not commit; durable when this returns.

        The dropped change is set aside for the operator, and never deleted. A second rewind
        without a change between is refused: only one change can be in doubt.

        Raises:
            Discontinuity: there is nothing to drop; nothing was changed.
            StorageError: the head may or may not be there; this writer is finished.
        """

    @abstractmethod
    def take_over(
        self, ticket: Ticket | None, timeout_s: float | None = None
    ) -> Statistics | MoreNeeded:
        """Replaces the backup by a reader's replacement, including later changes.

        Takes about the time of one append, or returns `COPY` if it would take longer. Atomic: at
        every moment either the complete old backup or the complete new one is there; the new one
        when this returns. Without a ticket it returns `PREPARE`; only a storage that no other
        process can reach while this is open is compacted here and now, which may take long.

        Raises:
            StorageError: the backup is unchanged and this writer continues; or, if the swap itself
                failed, this writer is finished and the next one finds one of the two.
        """

    @abstractmethod
    def discard(self) -> None:
        """Removes all replacements that were not taken over; the backup is unchanged."""
