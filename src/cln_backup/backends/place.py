"""The contract of a place: where one node's backup is, or will be.

`place_at(url)` gives it. It is opened to read or to write (`contract`). Both get the secret that
unlocks it, and a receiver of events, as arguments; neither is stored elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import time
from abc import ABC, abstractmethod
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from cln_backup.backends.events import ignore
from cln_backup.backends.ticket import MoreNeeded
from cln_backup.model.errors import BadUrl
from cln_backup.storage import interruption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from cln_backup.backends.contract import Reader, Writer
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.inventory import Inventory, Key
    from cln_backup.backends.secrets import Secret
    from cln_backup.backends.ticket import Folded, Statistics
    from cln_backup.model.change import Change
    from cln_backup.model.position import Position


class Keeps(NamedTuple):
    """The replaced generations of a backup that stay.

    Attributes:
        generations: the minimum number of them.
        days: the minimum time that each stays after it was replaced.
    """

    generations: int
    days: int


class Concession(Enum):
    """A protection that the operator has given up in the URL of a backup."""

    UNFENCED = "unfenced"
    """Nothing but the operator keeps two nodes from writing to it."""

    UNSAFE = "unsafe"
    """A loss of power may destroy changes that were answered."""

    PLAIN = "plain"
    """The connection to it is not encrypted by this program."""

    OPEN = "open"
    """Its server accepts any client that reaches it."""


class Place(ABC):
    """The place of a backup, existing or new.

    Attributes:
        url: as given.
        can_encrypt: whether the format supports encryption; otherwise methods about keys raise.
        keeps_node_files: whether a node's small files can be kept beside the history.
        works_in_fork: whether it can be read in a copy (`fork`) of a process that has used it.
    """

    can_encrypt: ClassVar[bool] = False
    keeps_node_files: ClassVar[bool] = False
    works_in_fork: ClassVar[bool] = True

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

    @property
    def removes_unfinished(self) -> bool:
        """Whether `creating` removes the backup if its block fails; a server keeps it."""
        return self.storage_dir is not None

    @property
    def rights(self) -> str | None:
        """The statements that give a node its rights, for the operator of the storage to run.

        `None` if it needs none.
        """
        return None

    @property
    def keeps(self) -> Keeps:
        """The replaced generations that a compaction leaves."""
        return Keeps(0, 0)

    @property
    def concessions(self) -> frozenset[Concession]:
        """The protections that its URL gives up."""
        return frozenset()

    def scratch_backup(self) -> AbstractContextManager[Place]:
        """A new and empty backup of no node on the same storage, removed when the block ends.

        For a test of the storage. It may not be encrypted, so nothing of a node belongs into it.
        A leftover of a killed test is removed by the next one.

        Raises:
            BadUrl: this storage has no room for one; nothing was made.
            NotFound, AlreadyExists, StorageError: nothing was made.
        """
        raise BadUrl(
            "A server has one backup for a node, and no room for a scratch backup beside it. "
            "Nothing was written."
        )

    @contextlib.contextmanager
    def _scratch_in(self, directory: str) -> Iterator[Place]:
        from cln_backup.storage import scratch

        with scratch.directory(directory, op="write test") as work:
            scheme = self.url.partition(":")[0]
            with type(self)(f"{scheme}://{os.path.join(work, 'backup')}").creating() as place:
                yield place

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

    def fence(
        self,
        node_id: str | None = None,
        *,
        secret: Secret | None = None,
        on_event: OnEvent = ignore,
    ) -> Writer:
        """Opens the backup to write, so that no older writer can store anything more.

        An older writer that this one cannot see, because its lock does not reach here, is refused
        at its next change. That is durable when this returns. A `file:` backup has only its lock:
        it keeps out the writers of this machine, and those of others as far as the file system
        shares its locks. At a server the current writer loses its right for good.

        Raises:
            WriterConflict: a living process holds the lock, or wrote while this looked.
            Discontinuity, NotFound, Damaged, Locked, BadUrl, StorageError: as `open_writer`.
        """
        return self.open_writer(node_id, secret=secret, on_event=on_event)

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

    def require_encryption(self) -> None:
        """Raises `BadUrl` if the format cannot be encrypted; nothing is read or contacted."""
        if not self.can_encrypt:
            raise self._cannot_encrypt()

    def _cannot_encrypt(self) -> BadUrl:
        scheme = self.url.partition(":")[0]
        return BadUrl(
            f"A {scheme}: backup cannot be encrypted; nothing was changed. "
            "These can be encrypted: a directory (dir:), a database (postgresql:), an object store "
            "(s3:, gs:, az:), and a server that stores a sealed backup (socket:)."
        )
