"""One compaction of a served backup, which the follower or a child process prepares."""

from __future__ import annotations

import functools
import select
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.compaction.compactor import Compactor
from cln_backup.compaction.messages import Declined, NotPrepared
from cln_backup.process.channel import error_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

    from typing_extensions import Self

    from cln_backup.backends.contract import Writer
    from cln_backup.backends.ticket import Statistics
    from cln_backup.compaction.messages import CompactionAnswer
    from cln_backup.follower.helper import FollowerHelper


class FollowerSide(NamedTuple):
    """The follower of a backup, for one compaction.

    Attributes:
        helper: takes the requests.
        answers: what it says; `None` when it has ended.
    """

    helper: FollowerHelper
    answers: SimpleQueue[CompactionAnswer | None]


class Preparing:
    """A compaction that is being prepared. If the follower cannot, a child process does it."""

    def __init__(self, backend: Writer, follower: FollowerSide | None) -> None:
        """Starts it; the backup is locked meanwhile. Raises `StorageError`."""
        self._backend = backend
        self._poll = select.poll()  # a server has more files open than select supports
        self._start(follower)

    def _start(self, follower: FollowerSide | None) -> None:
        self._answers = None if follower is None else follower.answers
        helper = None if follower is None else follower.helper
        self._compactor = Compactor(
            self._backend, if_it_pays=True, keep_migration=True, follower=helper
        )
        if follower is None:
            self._poll.register(self._compactor, select.POLLIN)

    def wait(self) -> Callable[[], Statistics | None]:
        """Waits for a message; returns the step to take then, with the backup locked.

        The step returns the statistics at the end.

        Raises:
            BackupError: the compaction has failed; the backup is unchanged.
        """
        if self._answers is None:
            self._poll.poll()
            return self._compactor.step
        said = self._answers.get()
        if said is None or isinstance(said, Declined):
            return self._start_again
        if isinstance(said, NotPrepared):
            raise error_of(said.error, "compacts")
        return functools.partial(self._compactor.take, said)

    def _start_again(self) -> None:
        self._compactor.close()
        self._start(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._compactor.close()
        self._compactor.wait()
