"""The contract of a history: a place that holds one node's backup, its readers and its writer.

A place (`place_at(url)`) is opened to read or to write. Both are told what unlocks it, and where
events go; nothing of that is remembered elsewhere. A call that may have to wait for a storage that
is out of reach takes a `timeout_s`: how long it may wait, `None` for as long as the URL says. A
storage of this machine is never waited for.
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
    """How far a backup has come; it never changes, a later call gives another one.

    Attributes:
        position: of the head, the last change.
        version_count: number of changes that the backup holds.
        prev_version: the data version that `rewind` goes back to; 0 where there is none.
        head: the last change; `None` in an empty backup.
        droppable: whether `rewind` can drop the head, as far as the storage tells.
        epoch: number of the last writer; 0 where the format does not count them.
    """

    position: Position
    version_count: int
    prev_version: int
    head: Head | None
    droppable: bool
    epoch: int

    @property
    def version(self) -> int:
        """Data version of the head; 0 in an empty backup."""
        return self.position.version


class LastChange(NamedTuple):
    """When the head was stored.

    Attributes:
        at: in seconds since 1970; `None` when that is not known.
        by_file: whether that is when a file was last written, for want of anything better.
            Programs that copy files may give the copy another time.
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
    """Where a backup is, or will be.

    Attributes:
        url: as given.
        can_encrypt: whether the format can; otherwise nothing about keys works.
    """

    can_encrypt: ClassVar[bool] = False

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def storage_dir(self) -> str | None:
        """A directory on the disk that holds the backup; `None` where a server has it."""
        return None

    @property
    def scratch_dir(self) -> str | None:
        """A directory beside the backup where a plain copy of the database may lie for a while.

        `None` where there is none: a server's backup, and one that is encrypted.
        """
        return self.storage_dir

    @abstractmethod
    def creating(
        self, base: Change | None = None, *, secret: Secret | None = None, hidden: bool = False
    ) -> AbstractContextManager[Place]:
        """Makes a new backup, empty or with a first snapshot, and removes it if the block fails.

        Durable, with its name, when the block begins; before that, there is nothing at the place.
        With `hidden` it appears, durable, when the block ends; inside, it is at the place that
        is given. A server can neither hide nor remove a backup; then the place itself is given.

        Raises:
            AlreadyExists: there is something at the place; it was left as it is.
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
        """Opens the backup to read; what a crash left is seen through, not mended.

        With `accept_incomplete`, a reader takes what is there of a copy whose end is missing.

        Raises:
            NotFound: there is no backup at the place.
            Damaged: there are bytes that cannot be right.
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
        """Opens the backup to write, and mends what a crash left.

        With a `node_id`, only if the backup is this node's or nobody's yet (`Writer.claim`).

        Raises:
            WriterConflict: another process is the writer.
            Discontinuity: the backup is another node's.
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
        """All key slots; nothing needs to be unlocked for it.

        Raises:
            BadUrl: this format cannot be encrypted.
            NotFound, Damaged, StorageError.
        """
        raise self._cannot_encrypt()

    def add_key(self, added: Secret, label: str, *, secret: Secret | None = None) -> None:  # noqa: ARG002
        """Lets one more secret unlock the backup; on stable storage when it returns.

        Raises:
            Locked: the backup is not unlocked, or not encrypted.
            AlreadyExists: there is a key slot of this name.
            BadUrl, StorageError.
        """
        raise self._cannot_encrypt()

    def remove_key(self, label: str) -> None:  # noqa: ARG002
        """Lets a secret no longer unlock a backup; on stable storage when it returns.

        Raises:
            NotFound, Locked, BadUrl: nothing was changed.
        """
        raise self._cannot_encrypt()

    def usage(self) -> Inventory | None:
        """What belongs to the backup; nothing needs to be unlocked for it.

        `None` where the storage is a server, which does not tell.

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
        """Compacts a backup that no node writes to; a server's also while one does.

        `fold` is that of `Reader.prepare_compaction`. With `if_it_pays`, the backup is left as it
        is where a compaction is not worth it (`Ticket.pays`).

        Raises:
            WriterConflict: a node writes to it.
            NotFound, Damaged, StorageError, and what `fold` raises: the backup is as before.
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
            assert not isinstance(done, MoreNeeded), "nobody appended"
            return done

    def _cannot_encrypt(self) -> BadUrl:
        scheme = self.url.partition(":")[0]
        return BadUrl(f"A {scheme}: backup cannot be encrypted; a dir: backup can.")


class Backend(ABC):
    """A backup that is open, to read or to write.

    Attributes:
        place: where it is.
    """

    place: Place

    @property
    @abstractmethod
    def standing(self) -> Standing:
        """How far the backup has come."""

    @property
    def version(self) -> int:
        """Data version of the head; 0 in an empty backup."""
        return self.standing.version

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """What the backup takes on its storage; computed when it is asked for."""

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
    """A backup as it was when it was opened, or when `wait_for_more` last found more.

    Several may be open at the same time, also beside a writer, in other processes too.
    """

    @property
    def opening(self) -> Opening | None:
        """What opens this backup once more, for another process of this program to read it.

        `None` where that takes a server's time, which the backup's own connection takes already.
        """
        return None

    @property
    def node_id(self) -> str | None:
        """The node whose backup this is; `None` when that is not known."""
        return None

    @abstractmethod
    def stream_changes(
        self, start: int = 0, *, after: Position | None = None, head: bool = True
    ) -> Iterator[Change]:
        """The changes from version `start` on, or those `after` a position, in order.

        Each has the time at which it was stored, 0 where that is not known.
        Memory does not grow with the backup; a snapshot must be read before the next change is
        asked for. With `head=False` the last change is left out.

        Raises:
            Discontinuity: the position is not in this history any more: its change was dropped,
                or a compaction has merged what follows it.
            Damaged, StorageError.
        """

    @abstractmethod
    def wait_for_more(self, timeout_s: float) -> bool:
        """Waits until the backup is another than this reader knows, and goes on to that.

        Returns at once where it is another already; `False` where it is the same after the time.
        Woken by the file system where that can be; a storage that wakes nobody is looked at from
        time to time. Streams that were begun before are of no use then.

        Raises:
            Damaged, StorageError: as when it is opened.
        """

    def check(self, progress: Callable[[Change], None] | None = None) -> None:
        """Reads all that is stored, and checks what can be checked without a replay.

        A backend whose format has checksums may do so without taking the changes apart; then
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
        """The changes that `rewind` dropped, where they stay in the backup and not beside it.

        Raises:
            BadUrl: this backend keeps them elsewhere; the message says where.
            Damaged, StorageError.
        """
        raise BadUrl(
            "Only a dir: backup lists what was dropped from it. Beside a file: backup each dropped "
            "change lies in a file of its own, NAME.dropped-VERSION; behind a server, beside the "
            "backup there."
        )

    @abstractmethod
    def prepare_compaction(self, fold: Callable[[Reader], Folded]) -> Ticket:
        """Builds what is to take the backup's place, beside it: a base, then the head.

        It holds no writer up, and may be done in another process than the writer's. `fold` makes
        the base from the changes before the head; it is asked at most once, and its snapshot is
        read before this returns. A server compacts by itself and asks for no base.

        Raises:
            StorageError, and what `fold` raises: what was built is removed.
        """

    @abstractmethod
    def prepare_more(self, ticket: Ticket) -> Ticket:
        """Goes on where `Writer.take_over` needs more. As `prepare_compaction` otherwise."""

    @abstractmethod
    def discard(self, ticket: Ticket) -> None:
        """Removes what was prepared; the backup is as before."""


class Writer(Backend):
    """The one process that may change a backup: it appends changes and may drop the head.

    One whose write or sync failed refuses everything after it: what reached the disk is found out
    by the next one that opens the backup.
    """

    @abstractmethod
    def claim(self, node_id: str, timeout_s: float | None = None) -> None:
        """Makes sure that the backup is this node's.

        Before the first change, with which it is remembered where that is possible. Part of
        `Place.open_writer`; a server holds the backup open before it knows the node.

        Raises:
            Discontinuity: it is another node's.
            StorageError: it cannot be remembered.
        """

    @abstractmethod
    def add_change(self, change: Change, timeout_s: float | None = None) -> None:
        """Appends a change; it is on stable storage when this returns.

        A change that says when it was stored keeps that time, where the format has room for it.
        The change must follow the head: a transaction makes `version + 1`, a rider keeps
        `version`, a snapshot may have any version from the head's on. Not to be tried again after
        an error: a failed sync cannot be repaired by a second one.

        Raises:
            Discontinuity, BadChange: nothing was written.
            StorageError: the change may or may not be there; this writer is finished.
        """

    @abstractmethod
    def rewind(self, timeout_s: float | None = None) -> None:
        """Drops the head, which the node did not commit; it is gone for good when this returns.

        The dropped change is set aside where an operator finds it, and never deleted. A second
        rewind without a change between is refused: only one change can be in doubt.

        Raises:
            Discontinuity: there is nothing to drop; nothing was changed.
            StorageError: the head may or may not be there; this writer is finished.
        """

    @abstractmethod
    def take_over(
        self, ticket: Ticket | None, timeout_s: float | None = None
    ) -> Statistics | MoreNeeded:
        """Puts what a reader prepared in the backup's place, with what was appended since.

        Takes about the time of one append, and answers `COPY` where it would take longer. Atomic:
        at every moment either the old backup or the new one is there, whole; the new one when
        this returns. Without a ticket it answers `PREPARE`; only a storage that nobody else can
        reach while this is open is compacted here and now, which may take long.

        Raises:
            StorageError: the backup is as before and this writer goes on; or, where it failed in
                the swap itself, the writer is finished and the next one finds one of the two.
        """

    @abstractmethod
    def discard(self) -> None:
        """Removes all that was prepared and not taken over; the backup is as before."""
