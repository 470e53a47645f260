"""Compares the node's database with the replica once, beside the running node, in short slices."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from cln_backup.replay.beside import Beside, Lagging, ReplicaAt, Unreadable, call
from cln_backup.replay.content import in_words

if TYPE_CHECKING:
    from cln_backup.backends.contract import Reader
    from cln_backup.replay.beside import Run
    from cln_backup.replay.kept import KeptReplica

_SLICE_S: Final = 0.2
"""How long to compare before the backup is followed again."""

_log = logging.getLogger(__name__)


class NodeComparison:
    """One comparison of all tables. It never waits for the node, nor the node for it.

    Attributes:
        finished_at: when all was compared, in seconds since 1970; `None` before, and if the
            database cannot be read.
        differences: where database and backup differ, in words; empty if nowhere.
        is_over: whether there is nothing left to do.
    """

    def __init__(self, database: str | None, run: Run = call) -> None:
        """Opens nothing yet; without a database there is nothing to do.

        `run` does what is done under a read lock: not at the lowest priority, at which a busy
        machine, or a busy disk, would keep the lock from being released, and the node from
        committing.
        """
        self._path = database
        self._run = run
        self._beside: Beside | None = None
        self.finished_at: float | None = None
        self.differences = ""
        self.is_over = database is None

    def go_on(self, replica: KeptReplica, reader: Reader) -> None:
        """Compares the next pieces, for a short time; the replica may then be before the head.

        Raises:
            BackupError: the backup cannot be read, or not be replayed.
        """
        assert self._path is not None
        at = ReplicaAt(replica, reader)
        until = time.monotonic() + _SLICE_S
        try:
            if self._beside is None:
                self._beside = Beside(self._path, run=self._run)
            while time.monotonic() < until:
                if not self._beside.step(at):
                    self._finish(self._beside)
                    return
                if self._beside.is_locked:
                    return
        except Lagging:  # the node is ahead of what this process has seen of the backup
            return
        except Unreadable as error:
            _log.warning("The node's database is not compared with the backup: %s", error)
            self.close()

    def _finish(self, beside: Beside) -> None:
        result = beside.result
        data = [one for one in result.differences if one.matters]
        self.differences = in_words(data)
        self.finished_at = time.time()
        if len(data) < len(result.differences):
            others = in_words([one for one in result.differences if not one.matters])
            _log.warning(
                "Indexes, or tables of other programs, of the node's database and its backup "
                "differ: %s",
                others,
            )
        if result.left:
            names = ", ".join(result.left)
            _log.warning("Tables too large to be compared while the node runs: %s", names)
        self.close()

    def close(self) -> None:
        """Ends the comparison."""
        self.is_over = True
        if self._beside is not None:
            self._beside.close()
            self._beside = None
