"""The contract of a history: its readers and its writer, as a place opens them.

A call that may wait for an unreachable storage takes a `timeout_s`; `None` means the deadline in
the URL. A storage of this machine is never waited for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.model.errors import BadUrl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from typing_extensions import Self

    from cln_backup.backends.node_files import KeptFiles
    from cln_backup.backends.opening import Opening
    from cln_backup.backends.place import Place
    from cln_backup.backends.ticket import Folded, Generation, MoreNeeded, Statistics, Ticket
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


class Proof(NamedTuple):
    """How far the storage itself has replayed the backup, as a server does.

    Attributes:
        version: data version up to which it has.
        at: when it found that, in seconds since 1970.
    """

    version: int
    at: float


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

    def generation(self) -> Generation | None:
        """The current generation by its size; measured by this call.

        `None` for a server's backup, which the server compacts by itself.
        """
        return None

    @property
    @abstractmethod
    def last_change(self) -> LastChange:
        """When the head was stored."""

    @property
    def can_be_followed(self) -> bool:
        """Whether a reader can follow the backup beside its writer, and is sent only new changes.

        Not with a server of an older release, which sends everything again, nor with the
        community's, which has one client at a time.
        """
        return True

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

    @property
    def proof(self) -> Proof | None:
        """How far the storage has replayed the backup; `None` if it has not, or does not say."""
        return None

    @property
    def is_original(self) -> bool:
        """Whether this is certainly the storage that the last writer wrote to, not a copy of it.

        A complete copy of a directory looks like the directory itself.
        """
        return self.place.storage_dir is None

    @property
    def durability(self) -> str | None:
        """The worth of the storage's answers, in words, by its settings; `None` if unknown."""
        return None

    @property
    def kept_files(self) -> KeptFiles | None:
        """The node's small files in this backup; `None` if its format has no place for them."""
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

    @property
    def can_start_over(self) -> bool:
        """Whether the storage supports `start_over`."""
        return False

    def start_over(self, change: Change, timeout_s: float | None = None) -> str:  # noqa: ARG002
        """Starts the history over with a snapshot of any version, which becomes the whole backup.

        For the way back from a migration that was interrupted; asked for by name only. The earlier
        history is kept as a backup of its own, which no maintenance removes; returns where, for a
        message. Atomic, and durable when it returns. No older writer can store anything after it.

        Raises:
            BadUrl: this storage cannot do it; nothing was changed.
            StorageError: it is done or not; this writer is finished.
        """
        raise BadUrl(
            "The history of this backup cannot be started over. Nothing was changed. Keep it, and "
            "make a new backup under another name."
        )

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
