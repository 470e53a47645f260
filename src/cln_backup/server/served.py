"""One node's backup on a server: the right to write, and all operations on the backup."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from cln_backup.backends import create_backend, place_at, redacted
from cln_backup.backends.ticket import size_of
from cln_backup.compaction.facts import facts_of
from cln_backup.model.change import Kind
from cln_backup.model.errors import (
    AlreadyExists,
    BackupError,
    Discontinuity,
    NotFound,
    StorageError,
    WriterConflict,
)
from cln_backup.server.bells import Bells
from cln_backup.server.node import Node
from cln_backup.server.preparing import Preparing
from cln_backup.server.proof import Proof
from cln_backup.server.right import Right
from cln_backup.server.standing import head_digest, standing_of
from cln_backup.storage import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cln_backup.backends.contract import Reader, Writer
    from cln_backup.backends.events import Event
    from cln_backup.backends.place import Keeps
    from cln_backup.backends.ticket import Statistics
    from cln_backup.compaction.policy import Facts
    from cln_backup.model.change import Change
    from cln_backup.server.preparing import FollowerSide
    from cln_backup.server.right import Client
    from cln_backup.wire import packets as wire

_compacting_now = threading.BoundedSemaphore(2)


class Served(Node):
    """One backup that the server reads and writes itself; writes are serialized.

    The backup is kept open for writing, so that no other process writes to it.

    Attributes:
        compacted_at: when a compaction last ended, in seconds since 1970; `None` if none has.
        compacting: whether one is running.
    """

    def __init__(self, name: str, url: str, token_hash: str | None) -> None:
        super().__init__(name, url, token_hash)
        self.bells = Bells()
        self.proof = Proof()
        self.follower: Callable[[], FollowerSide | None] = lambda: None
        self.restarts = 0
        self.space_bound_bytes: int | None = None
        self._began_at = time.time()
        self.compacted_at: float | None = None
        self._changed = threading.Condition(threading.RLock())
        self._backend: Writer | None = None
        self._digest: bytes | None = None
        self._right = Right(self._changed)
        self._writes = 0
        self._size_bytes = 0
        self.compacting = False
        self._compacted_at_write = -1

    def open(self) -> None:
        """Opens the backup for writing. Raises as `Place.open_writer` does."""
        with self._changed:
            self._stand_and_measure()

    def _opened(self) -> Writer:
        self.require_open()
        if self._backend is None:
            self._digest = None
            self._backend = place_at(self.url).open_writer(on_event=self._say_event)
        return self._backend

    def _say_event(self, event: Event) -> None:
        self.say(logging.WARNING, event.text)

    def _stand(self, backend: Writer) -> wire.Standing:
        if self._digest is None:
            with self.open_reader() as reader:
                self._digest = head_digest(reader)
        standing = standing_of(backend, self._digest, self._right.epoch)
        if standing != self.last:
            self.last = standing
            self.bells.ring()
        return standing

    def _stand_and_measure(self) -> wire.Standing:
        backend = self._opened()
        self._size_bytes = backend.size_bytes
        return self._stand(backend)._replace(size_bytes=self._size_bytes)

    def size_bytes(self) -> int:
        """The size of the backup on its storage.

        It is measured when this is called, except while the backup is in use: this waits for
        nothing, and gives the size as it was measured last.
        """
        if self._changed.acquire(blocking=False):
            try:
                if self._backend is not None:
                    self._size_bytes = self._backend.size_bytes
            finally:
                self._changed.release()
        return self._size_bytes

    def standing(self) -> wire.Standing:
        """The state of the backup, with its size, including the writer's changes."""
        with self._changed:
            return self._stand_and_measure()

    def open_reader(self) -> Reader:
        """Opens the backup for reading. Raises as `Place.open_reader` does."""
        return place_at(self.url).open_reader()

    def standing_and_writes(self) -> tuple[wire.Standing, int]:
        """As `standing`, with the number of writes so far, for `append` and `drop`."""
        with self._changed:
            return self._stand(self._opened()), self._writes

    def scratch_dir(self) -> str:
        """A directory with space for a snapshot that is being received."""
        with self._changed:
            return scratch.place(None, self._opened().place.scratch_dir)

    def claim(self, writer: Client, session: str, *, resume: bool) -> wire.Standing:
        """Gives a connection the right to write.

        A session takes it over from its own previous connection; another session gets it only
        when the holder's connection is gone.

        Raises:
            WriterConflict: another session has it, or has taken it from this one meanwhile.
        """
        with self._changed:
            if self._right.holder is writer:
                return self._stand(self._opened())
            self._right.make_free(session, resume=resume)
            standing = self._stand_and_measure()
            self._right.take(writer, session)
            return standing._replace(epoch=self._right.epoch)

    def create(self, writer: Client, base: Change | None, digest: bytes) -> wire.Standing:
        """Makes the backup, or uses an existing empty one. Durable when it returns.

        Raises:
            AlreadyExists: there is one with changes in it; it was not changed.
            BackupError: as `Place.creating` and `Writer.add_change` raise.
        """
        with self._changed:
            try:
                backend = self._opened()
            except NotFound:
                create_backend(self.url, base)
                self.say(logging.WARNING, f"a new backup was made at {redacted(self.url)}")
                return self._stand(self._opened())
            if backend.standing.version_count:
                raise AlreadyExists("The backup already has changes in it; it was not changed.")
            if base is None:
                return self._stand(backend)
            self.claim(writer, "", resume=False)
            return self.append(writer, base, digest)

    def take_over(self, session: str) -> None:
        """Ends the holder's right to write for good; the next session that asks gets it."""
        with self._changed:
            self._right.revoke(session)

    def is_writer(self, client: Client) -> bool:
        """Whether a connection has the right to write."""
        return self._right.holder is client

    def require_writer(self, client: Client) -> None:
        """Raises `WriterConflict` if a connection does not have the right to write."""
        with self._changed:
            self._writable(client)

    def leave(self, client: Client, received_bytes: int) -> None:
        """See `Node.leave`. Frees the right to write if the connection had it."""
        super().leave(client, received_bytes)
        with self._changed:
            self._right.release(client)

    def belong_to(self, writer: Client, node_id: str) -> wire.Standing:
        """Makes sure that the backup belongs to this node, as `Writer.claim` does.

        Raises:
            Discontinuity: it belongs to another node.
            WriterConflict, StorageError.
        """
        with self._changed:
            backend = self._writable(writer)
            backend.claim(node_id)
            return self._stand(backend)

    def append(
        self, writer: Client, change: Change, digest: bytes, *, writes: int | None = None
    ) -> wire.Standing:
        """Stores a change; it is on stable storage when this returns.

        Protocol 1 has no sessions: a request sent on a connection that the client has given up
        may arrive after the client has asked for the state of the backup on the next one. So its
        writes come with the number of writes known to the client at its last answer, and a write
        that does not know of the last one is refused.

        Raises:
            WriterConflict: the connection has lost the right to write.
            BackupError: as `Writer.add_change` raises.
        """
        with self._changed:
            backend = self._writable(writer, writes)
            try:
                backend.add_change(change)
            except BaseException as error:
                self._judge(error)
                raise
            self._digest = digest
            self._writes += 1
            self.counters.changes += 1
            return self._stand(backend)

    def start_over(self, writer: Client, change: Change, replaced: bytes) -> wire.Standing:
        """Makes a snapshot the whole backup, as `Writer.start_over`; the log says what is kept.

        `replaced` is the digest of the head that the client saw.

        Raises:
            Discontinuity: the head is a different change; nothing was changed.
            BadUrl: the backup's storage cannot do it; nothing was changed.
            WriterConflict, StorageError: as for `append`.
        """
        with self._changed:
            backend = self._writable(writer)
            head = self._stand(backend)
            if head.digest != replaced:
                raise Discontinuity(
                    f"Cannot start the backup over: its last change, for data version "
                    f"{head.version}, is not the one that was expected. Nothing was changed."
                )
            try:
                kept = backend.start_over(change)
            except BaseException as error:
                self._judge(error)
                raise
            self._writes += 1
            self.restarts += 1
            self.say(
                logging.WARNING,
                f"The backup was started over from data version {change.version}, to undo a "
                f"migration. Its earlier history, up to {head.version}, is kept in {kept}",
            )
            self._digest = None
            return self._stand(backend)

    def drop(
        self, writer: Client, to_version: int, digest: bytes | None, *, writes: int | None = None
    ) -> wire.Standing:
        """Drops the head, which must have this digest if one is given. As `append` otherwise.

        Without a digest, as in protocol 1, a client cannot tell which change it drops: a snapshot
        is never dropped, because the node had committed its contents.

        Raises:
            Discontinuity: the head is a different change, or cannot be dropped.
        """
        with self._changed:
            backend = self._writable(writer, writes)
            head = self._stand(backend)
            unseen_snapshot = digest is None and head.head is Kind.SNAPSHOT
            same = to_version == head.prev_version and digest in (None, head.digest)
            if unseen_snapshot or not same:
                raise Discontinuity(
                    f"Cannot drop the last change: the backup is at version {head.version} and "
                    f"cannot go back to {to_version}. Nothing was dropped."
                )
            try:
                backend.rewind()
            except BaseException as error:
                self._judge(error)
                raise
            self._digest = None
            self._writes += 1
            return self._stand(backend)

    def _writable(self, writer: Client, writes: int | None = None) -> Writer:
        self.require_open()
        self._right.require(writer)
        if writes is not None and writes != self._writes:
            raise WriterConflict(
                "The backup was written to since the last answer on this connection."
            )
        return self._opened()

    def _judge(self, error: BaseException) -> None:
        """After a failed write, or another process's, the backup must be opened again."""
        refused = isinstance(error, BackupError) and not isinstance(
            error, (StorageError, WriterConflict)
        )
        if not refused:
            self._shut()

    def facts(self) -> Facts | None:
        """The facts for the policy of compactions; `None` if the backup is not open, or is busy.

        Raises:
            StorageError: the disk failed.
        """
        with self._changed:
            if self._backend is None or self.compacting:
                return None
            return facts_of(self._backend, self._began_at, self.compacted_at)

    def keeps(self) -> Keeps:
        """The older generations that the URL keeps."""
        return place_at(self.url).keeps

    def compact(self) -> Statistics:
        """Compacts the backup while it can be written to.

        Raises:
            BackupError: the backup is unchanged.
        """
        with self._changed:
            if self.compacting:
                raise StorageError("A compaction of this backup is already running.")
            if self._compacted_at_write == self._writes:
                size = size_of(self._opened())
                return {"before": size, "after": size}
            self.compacting = True
        try:
            with _compacting_now:
                statistics = self._compact()
        finally:
            self.compacting = False
        if "would_be" not in statistics:
            self.compacted_at = time.time()
        self.counters.compactions += 1
        return statistics

    def _compact(self) -> Statistics:
        follower = self.follower()
        with self._changed:
            backend, writes, restarts = self._opened(), self._writes, self.restarts
            preparing = Preparing(backend, follower)
        with preparing:
            while True:
                step = preparing.wait()
                with self._changed:
                    if self._backend is not backend or self.restarts != restarts:
                        raise StorageError(
                            "A write failed meanwhile, or the backup was started over; the "
                            "compaction was given up."
                        )
                    statistics = step()
                    if statistics is not None:
                        self._compacted_at_write = writes
                        self._stand(backend)
                        return statistics

    def writer_since_s(self) -> float:
        """For how long the current session has had the right to write; 0 without a writer."""
        return self._right.held_s()

    def writer_peer(self) -> str | None:
        """The address of the current writer."""
        holder = self._right.holder
        return None if holder is None else holder.peer

    def _shut(self) -> None:
        if self._backend is not None:
            self._backend.close()
            self._backend = None
        self._digest = None

    def retire(self) -> None:
        """See `Node.retire`. Closes the backup."""
        super().retire()
        with self._changed:
            self._right.holder = None
            self._shut()

    def close(self) -> None:
        """Closes the backup, after the write in progress."""
        with self._changed:
            self._shut()


def served_of(nodes: Mapping[str, Node]) -> dict[str, Served]:
    """The nodes whose backups the server can read; without sealed ones."""
    return {name: node for name, node in dict(nodes).items() if isinstance(node, Served)}
