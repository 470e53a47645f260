"""The writer's side of a compaction: a child process works, the writer swaps at the end."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cln_backup.backends.ticket import MoreNeeded, size_of
from cln_backup.compaction.messages import Compacted, More, NotWorthIt, Ready, Start
from cln_backup.model.errors import StorageError
from cln_backup.process.child import Child

if TYPE_CHECKING:
    from cln_backup.backends.contract import Writer
    from cln_backup.backends.secrets import Secret
    from cln_backup.backends.ticket import Statistics

_END_S = 60.0


class Compactor:
    """One running compaction; poll its `fileno`.

    Attributes:
        done: the statistics if nothing is left to do: then there is no child process.
    """

    def __init__(
        self,
        writer: Writer,
        scratch_dir: str | None = None,
        *,
        secret: Secret | None = None,
        if_it_pays: bool = False,
    ) -> None:
        """Starts the child process, which works in `scratch_dir` if given.

        It unlocks the backup with `secret`, or with the URL's. With `if_it_pays`, the backup is not
        changed if a compaction is not worth it. A storage that a second process cannot reach has
        compacted when this returns, which may take long.

        Raises:
            StorageError: it cannot be started, or leftovers cannot be removed.
        """
        self._writer = writer
        self._before = size_of(writer)
        self._done = False
        self.done: Statistics | None = None
        writer.discard()
        begun = writer.take_over(None)
        if not isinstance(begun, MoreNeeded):
            self.done = begun
            return
        self._child = Child[Ready | Compacted | NotWorthIt](
            "cln_backup.compaction.process",
            Start(writer.place.url, secret, scratch_dir, if_it_pays),
            (Ready, Compacted, NotWorthIt),
            work="compacts",
        )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def fileno(self) -> int:
        """Becomes readable when `step` has something to do."""
        return self._child.fileno()

    def step(self) -> Statistics | None:
        """Handles a message of the child process; returns the statistics at the end.

        When it returns them, the compacted backup is on stable storage and has replaced the old
        one; or the old one was kept, and they say what it `would_be`.

        Raises:
            BackupError: the compaction has failed; the backup is unchanged.
        """
        said = self._child.step()
        if said is None:
            return None
        statistics: Statistics | MoreNeeded
        if isinstance(said, Ready):
            statistics = self._writer.take_over(said.ticket)
            if not isinstance(statistics, MoreNeeded):
                statistics["before"] = self._before
        elif isinstance(said, Compacted):
            statistics = said.statistics
        else:
            now = size_of(self._writer)
            statistics = {"before": now, "after": now, "would_be": said.would_be}
        if isinstance(statistics, MoreNeeded):
            self._child.send(More())
            return None
        self._done = True
        return statistics

    def close(self) -> None:
        """Ends the child process; its unfinished files are removed, now or by itself.

        After a compaction it still frees the old file's space, which takes some time.
        """
        if self._done:
            self._child.release()
        else:
            self._child.close()
        with contextlib.suppress(StorageError):  # leftovers are removed at the next opportunity
            self._writer.discard()

    def wait(self) -> None:
        """After `close`: waits until the child process has ended, and reaps it."""
        self._child.wait(_END_S)
