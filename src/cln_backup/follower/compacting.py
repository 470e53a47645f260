"""A compaction that a follower prepares from the replica of a backup, and its writer takes over."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from cln_backup.compaction.compact import require_no_migration
from cln_backup.compaction.from_replica import prepare
from cln_backup.compaction.messages import (
    Compact,
    Compacted,
    Declined,
    NotPrepared,
    NotWorthIt,
    Ready,
    Settled,
)
from cln_backup.follower.messages import CompactionAsk, CompactionSaid
from cln_backup.model.errors import BackupError, Interrupted
from cln_backup.process.channel import failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.backends.contract import Reader
    from cln_backup.backends.ticket import Ticket
    from cln_backup.compaction.from_replica import Prepared
    from cln_backup.follower.followed import FollowedBackup
    from cln_backup.process.channel import Message
    from cln_backup.process.parent import Parent

_SLICE_S: Final = 0.25
_PAUSE: Final = 4.0

_COMPARING_S: Final = 120.0
"""How long to compare the replica with the database; the rest is not compared."""

_COMPARING_PAUSE_S: Final = 0.1

_MAX_WAL_BYTES: Final = 32 << 20
"""While its file is read, the replica's new changes stay in its WAL: no more than these."""


class Compacting:
    """The compactions of one followed backup, one at a time.

    From the moment when one is ready until the writer has decided, the replica stays where it is:
    a history that was replaced would be taken for one that has lost its changes.
    """

    def __init__(
        self,
        followed: FollowedBackup,
        parent: Parent[CompactionAsk],
        look_at_all: Callable[[], None],
    ) -> None:
        """`look_at_all` lets all backups be followed, during the work."""
        self._followed = followed
        self._parent = parent
        self._look_at_all = look_at_all
        self._number = 0
        self._reader: Reader | None = None
        self._prepared: Prepared | None = None

    def serve(self, request: CompactionAsk) -> None:
        """Handles a request of the writer. Errors become answers. Raises `Interrupted`."""
        if not isinstance(request.asked, Compact) and request.number != self._number:
            return  # about one that another has followed
        self._number = request.number
        try:
            self._serve(request.asked)
        except Interrupted:
            raise
        except (BackupError, OSError, MemoryError) as error:
            self._end()
            self._say(NotPrepared(failure(error)))

    def _say(self, said: Message) -> None:
        self._parent.say(CompactionSaid(self._followed.name, self._number, said))  # type: ignore[arg-type]

    def _serve(self, asked: Message) -> None:
        if isinstance(asked, Compact):
            self._end()
            self._begin(asked)
        elif self._prepared is None or self._reader is None:
            return  # it has ended here already
        elif isinstance(asked, Settled):
            self._settle(taken=asked.taken)
        else:
            ticket = self._reader.prepare_more(self._prepared.ticket)
            self._prepared = self._prepared._replace(ticket=ticket)
            self._say(Ready(ticket))

    def _begin(self, asked: Compact) -> None:
        replica = self._followed.replica
        if replica is None or not self._followed.is_at_hand():
            self._say(Declined())
            return
        if not self._is_as_the_database():
            self._followed.build_again()
            self._say(Declined())
            return
        # Not at the lowest priority: on a busy machine, that takes very long, and while a process
        # of low priority holds the file system's journal, the node's writer would wait.
        self._reader = self._parent.aside(self._followed.open_reader).result()
        if asked.keep_migration:
            require_no_migration(self._reader)
        self._parent.aside(self._catch_up).result()
        prepared = prepare(replica, self._reader, self._stage, self._parent.check)
        if prepared is None:
            self._end()
            self._say(Declined())
        elif prepared.ticket.done is not None:
            self._end()
            self._say(Compacted(prepared.ticket.done))
        elif asked.if_it_pays and not prepared.ticket.pays():
            self._reader.discard(prepared.ticket)
            self._end()
            self._say(NotWorthIt(prepared.ticket.after))
        else:
            self._prepared = prepared
            self._followed.holds = True
            self._say(Ready(prepared.ticket))

    def _is_as_the_database(self) -> bool:
        """Whether the replica has the contents of the node's database, if that is at hand.

        A bit that the replica's disk has changed would otherwise get into the backup, and the
        history that does not have it would be removed.
        """
        followed, comparison = self._followed, self._followed.comparison()
        assert followed.replica is not None
        assert followed.reader is not None
        until = time.monotonic() + _COMPARING_S
        followed.replica.forget_pages()
        try:
            while not comparison.is_over and time.monotonic() < until:
                self._parent.check()
                followed.reader.wait_for_more(0)
                comparison.go_on(followed.replica, followed.reader)
                time.sleep(_COMPARING_PAUSE_S)
        finally:
            comparison.close()
        return not comparison.differences

    def _catch_up(self) -> None:
        """Replays what the replica lacks, with pauses that leave the processor to the node."""
        replica, reader = self._followed.replica, self._reader
        assert replica is not None
        assert reader is not None
        while not replica.catch_up(reader, until=time.monotonic() + _SLICE_S):
            self._parent.check()
            time.sleep(_SLICE_S * _PAUSE)

    def _stage(self, work: Callable[[], Ticket]) -> Ticket:
        self._followed.compares = False  # it would wait for the thread that does this work
        try:
            return self._parent.aside(work).result(self._follow)
        finally:
            self._followed.compares = True

    def _follow(self) -> None:
        replica = self._followed.replica
        self._followed.holds = replica is None or _wal_bytes(replica.path) > _MAX_WAL_BYTES
        self._look_at_all()

    def _settle(self, *, taken: bool) -> None:
        assert self._prepared is not None
        followed = self._followed
        if taken and followed.replica is not None and followed.reader is not None:
            followed.reader.wait_for_more(0)
            followed.replica.rebase(self._prepared.base, followed.reader)
        self._end()

    def close(self) -> None:
        """Gives up what is prepared; the writer removes it."""
        self._end()

    def _end(self) -> None:
        self._followed.holds, self._prepared = False, None
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()  # frees the space of a file that was replaced


def _wal_bytes(path: str) -> int:
    try:
        return os.path.getsize(f"{path}-wal")
    except OSError:
        return 0
