"""One backup that is followed: its reader, its replica, and what is known of them."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from msgspec import structs

from cln_backup.follower.comparing import NodeComparison
from cln_backup.follower.keeping import NodeFilesKeeper
from cln_backup.follower.messages import Alarm, Progress
from cln_backup.model.errors import BackupError, Damaged, Interrupted, ReplayFailed
from cln_backup.replay.beside import call
from cln_backup.replay.kept import KeptReplica
from cln_backup.storage import scratch

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.backends.contract import Reader
    from cln_backup.follower.messages import Backup
    from cln_backup.process.channel import Message
    from cln_backup.replay.beside import Run

_LOOK_S: Final = 1.0
_LONGEST_LOOK_S: Final = 5.0
_SHARE: Final = 25
"""After each look, a pause of so many times the processor time that it took."""

_SLICE_S: Final = 2.0
"""How long to replay before requests are answered."""

_TROUBLE_S: Final = 1.0
_LONGEST_TROUBLE_S: Final = 60.0
_DOUBTS_S: Final = {"replay": (0.5, 1.0), "damaged": (0.5, 8.0)}
"""The pauses before what looks wrong is read again; then it is wrong."""

_FIRST_CHECK_S: Final = 10.0
_LEAST_CHECK_S: Final = 600.0
_CHECK_SHARE: Final = 100

_COMPARING_PAUSE_S: Final = 0.5
"""The pause between two slices of the comparison with the node's database."""

_log = logging.getLogger(__name__)


class FollowedBackup:
    """Keeps the replica of one backup at its head; call `look` when `due_s` is over.

    Attributes:
        name: the parent's name for the backup.
        reader: of the backup; `None` while it cannot be read.
        replica: `None` while it cannot be opened.
        holds: whether `look` does nothing: a compaction needs the replica as it is.
        compares: whether the node's database may be compared now.
    """

    def __init__(self, backup: Backup, say: Callable[[Message], None], run: Run = call) -> None:
        """Opens nothing yet; `run` is as for `NodeComparison`."""
        self.name = backup.name
        self.reader: Reader | None = None
        self.replica: KeptReplica | None = None
        self.holds = False
        self.compares = True
        self._backup = backup
        self._say = say
        self._look_at = time.monotonic()
        self._check_at = self._look_at + _FIRST_CHECK_S
        self._is_behind = True
        self._trouble: str | None = None
        self._trouble_s = _TROUBLE_S
        self._doubt: tuple[str, int] | None = None
        self._doubts = 0
        self._confirms = False
        self._run = run
        self._comparison = NodeComparison(backup.database, run)
        self._keeper = None if backup.node is None else NodeFilesKeeper(backup.node, run)
        self._alarms: set[tuple[str, int]] = set()
        self._looked_at: float | None = None
        self._checked_at: float | None = None
        self._faults = 0
        self._proof: tuple[int, float | None] = (0, None)
        self._said: object = None

    def due_s(self) -> float:
        """How long to wait before `look`."""
        if self.holds:
            return _LOOK_S
        return max(0.0, self._look_at - time.monotonic())

    def look(self) -> None:
        """Takes up what is new in the backup, for a short time; reports what has changed.

        Errors are reported, not raised. Raises `Interrupted`.
        """
        if self.holds or self.due_s() > 0:
            return
        began_s = time.process_time()
        self._look_at = time.monotonic()
        try:
            self._follow()
            self._check_if_due()
            self._compare_if_due()
            if self._keeper is not None and self.reader is not None:
                self._keeper.look(self.reader)
        except Interrupted:
            raise
        except (ReplayFailed, Damaged) as error:
            self._question(error)
        except BackupError as error:
            self._endure(str(error))
        except MemoryError:
            self._endure("Not enough memory for the follower.")
        else:
            self._trouble, self._trouble_s = None, _TROUBLE_S
            if not self._is_behind:
                used_s = time.process_time() - began_s
                self._look_at += max(_LOOK_S, min(used_s * _SHARE, _LONGEST_LOOK_S))
        self._report()

    def is_at_hand(self) -> bool:
        """Whether the replica can be used at the moment."""
        return self.replica is not None and self.reader is not None

    def open_reader(self) -> Reader:
        """Opens the backup once more. Raises as `Place.open_reader`."""
        return self._backup.opening.open()

    def _follow(self) -> None:
        looked_at = time.time()
        if self.reader is None:
            self.reader = self._backup.opening.open()
            self._is_behind = True
        if self.replica is None:
            self.replica = KeptReplica.open(self._backup.directory)
        if self.reader.wait_for_more(0) or self._is_behind or not self.replica.is_in_place():
            self._is_behind = True
            scratch.require_room(self._backup.directory, op="follow")  # the rest is for the node
            until = time.monotonic() + _SLICE_S
            if not self.replica.catch_up(self.reader, until=until):
                return
            self._is_behind = False
            self._forget_alarms("replay", "damaged")
        self._looked_at = looked_at
        self._doubt = None

    def _check_if_due(self) -> None:
        """Checks the integrity of the replica, so seldom that it costs a hundredth of the time."""
        began_s = time.monotonic()
        if self._is_behind or began_s < self._check_at:
            return
        assert self.replica is not None
        try:
            self._faults = self.replica.check()
        except ReplayFailed as error:
            if self._confirms:
                self._raise("integrity", 0, str(error))
                self._check_at = began_s + _LEAST_CHECK_S
                return
            _log.warning("The replica is damaged, and is made again: %s", error)
            self._start_anew()
            self._check_at = began_s  # as soon as it is at the head
            return
        self._confirms = False
        self._forget_alarms("integrity")
        self._checked_at = time.time()
        took_s = time.monotonic() - began_s
        self._check_at = began_s + max(_LEAST_CHECK_S, took_s * _CHECK_SHARE)

    def _compare_if_due(self) -> None:
        """Compares the node's database with the replica, once, as soon as that is at the head."""
        if self._is_behind or self._comparison.is_over or not self.compares:
            return
        assert self.replica is not None
        assert self.reader is not None
        self._is_behind = True  # it brings the replica to the database's version
        self._comparison.go_on(self.replica, self.reader)
        self._look_at += _COMPARING_PAUSE_S
        if self._comparison.differences and not self.replica.is_new:
            self.build_again()
        elif self._comparison.differences:
            text = "Its content differs from the node's database: "
            self._raise("content", 0, f"{text}{self._comparison.differences}.")

    def comparison(self) -> NodeComparison:
        """One more comparison with the node's database, which moves the replica."""
        self._is_behind = True
        return NodeComparison(self._backup.database, self._run)

    def build_again(self) -> None:
        """Builds a replica again that differs from the node's database, and compares once more.

        Its disk may have changed it, which no check of SQLite finds.
        """
        _log.warning(
            "The replica differs from the node's database: it is built again, and compared once "
            "more."
        )
        self._start_anew()
        self._comparison = self.comparison()

    def _start_anew(self) -> None:
        """Makes the replica again: what is wrong may be wrong in the replica only."""
        assert self.replica is not None
        self.replica.start_anew()
        self._is_behind = self._confirms = True

    def _question(self, error: ReplayFailed | Damaged) -> None:
        """Reads the backup again before it is called wrong: its writer may have changed it."""
        self._close_reader()
        kind = "replay" if isinstance(error, ReplayFailed) else "damaged"
        found = kind, error.good_version
        self._doubts = self._doubts + 1 if found == self._doubt else 0
        self._doubt = found
        pauses_s = _DOUBTS_S[kind]
        if self._doubts < len(pauses_s):
            self._look_at += pauses_s[self._doubts]
            return
        self._look_at += _LONGEST_TROUBLE_S
        if kind == "replay" and self.replica is not None and not self.replica.is_new:
            self._start_anew()
            self._look_at = time.monotonic()
            return
        self._raise(*found, str(error))

    def _raise(self, kind: str, good_version: int, text: str) -> None:
        """Raises an alarm, once."""
        if (kind, good_version) not in self._alarms:
            self._report()  # first: what passed before the alarm does not end it
            self._alarms.add((kind, good_version))
            self._say(Alarm(self.name, kind, text))

    def _forget_alarms(self, *kinds: str) -> None:
        """Ends alarms, as the parent does now too; the same fault raises one again."""
        self._alarms = {alarm for alarm in self._alarms if alarm[0] not in kinds}

    def _endure(self, trouble: str) -> None:
        """Tries again later, with everything opened again."""
        self.close()
        self._trouble = trouble
        self._look_at += self._trouble_s
        self._trouble_s = min(2 * self._trouble_s, _LONGEST_TROUBLE_S)

    def _report(self) -> None:
        if self.replica is not None:
            self._proof = self.replica.proof
        compared_at = self._comparison.finished_at
        files_at, files_trouble = (None, None) if self._keeper is None else self._keeper.state
        progress = Progress(
            self.name,
            *self._proof,
            self._looked_at,
            self._trouble,
            self._checked_at,
            self._faults,
            compared_at,
            files_at,
            files_trouble,
        )
        state = structs.replace(progress, looked_at=None)
        if state == self._said:
            return
        self._said = state
        self._say(progress)

    def _close_reader(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None

    def close(self) -> None:
        """Closes backup and replica; the next look opens them again."""
        self._close_reader()
        if self.replica is not None:
            self.replica.close()
            self.replica = None
