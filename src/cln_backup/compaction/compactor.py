"""The writer's side of a compaction: another process works, the writer swaps at the end."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from cln_backup.backends.ticket import MoreNeeded, size_of
from cln_backup.compaction.messages import (
    Compact,
    Compacted,
    More,
    NotWorthIt,
    Ready,
    Start,
)
from cln_backup.model.errors import StorageError
from cln_backup.process.child import Child

if TYPE_CHECKING:
    from cln_backup.backends.contract import Writer
    from cln_backup.backends.secrets import Secret
    from cln_backup.backends.ticket import Statistics
    from cln_backup.process.channel import Message

_END_S = 60.0


Said: TypeAlias = Ready | Compacted | NotWorthIt
SAID: Final = (Ready, Compacted, NotWorthIt)


class Helper(Protocol):
    """The process that prepares a compaction: a child process, or the node's follower."""

    def send(self, message: Message) -> None:
        """Sends it a message. Raises `StorageError` if it has ended."""

    def release(self) -> None:
        """The compaction is done; the process ends by itself, or continues with other work."""

    def close(self) -> None:
        """The compaction was given up; what is unfinished is removed."""

    def wait(self, timeout_s: float) -> None:
        """After `release` or `close`: waits until the process has ended, if it ends."""


class Compactor:
    """One running compaction, from the writer's side.

    Attributes:
        done: the statistics if nothing is left to do: then no process helps.
    """

    def __init__(
        self,
        writer: Writer,
        scratch_dir: str | None = None,
        *,
        secret: Secret | None = None,
        if_it_pays: bool = False,
        keep_migration: bool = False,
        follower: Helper | None = None,
    ) -> None:
        """Asks the follower to prepare it, or starts a child process; then poll its `fileno`.

        A child process works in `scratch_dir` if given, and unlocks the backup with `secret`, or
        with the URL's. With `if_it_pays`, the backup is not changed if a compaction is not worth
        it, and by a child process not within a migration; by a follower with `keep_migration`. A
        storage that a second process cannot reach has compacted when this returns, which may take
        long.

        Raises:
            StorageError: it cannot be started, or leftovers cannot be removed.
        """
        self._writer = writer
        self._before = size_of(writer)
        self._done = False
        self._child: Child[Said] | None = None
        self._helper = follower
        self.done: Statistics | None = None
        writer.discard()
        begun = writer.take_over(None)
        if not isinstance(begun, MoreNeeded):
            self.done = begun
        elif follower is not None:
            follower.send(Compact(if_it_pays, keep_migration))
        else:
            self._helper = self._child = Child(
                "cln_backup.compaction.process",
                Start(writer.place.url, secret, scratch_dir, if_it_pays),
                SAID,
                work="compacts",
            )

    @property
    def pid(self) -> int:
        """The child's process id."""
        assert self._child is not None
        return self._child.pid

    def is_followers(self) -> bool:
        """Whether a follower prepares it, whose messages the caller gives to `take`."""
        return self._child is None

    def fileno(self) -> int:
        """Becomes readable when `step` has something to do; -1 if a follower prepares it."""
        return -1 if self._child is None else self._child.fileno()

    def step(self) -> Statistics | None:
        """Handles a message of the child process, as `take`."""
        assert self._child is not None
        said = self._child.step()
        return None if said is None else self.take(said)

    def take(self, said: Said) -> Statistics | None:
        """Handles a message of the process that prepares; returns the statistics at the end.

        When it returns them, the compacted backup is on stable storage and has replaced the old
        one; or the old one was kept, and they say what it `would_be`.

        Raises:
            BackupError: the compaction has failed; the backup is unchanged.
        """
        assert self._helper is not None
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
            self._helper.send(More())
            return None
        self._done = True
        return statistics

    def close(self) -> None:
        """Lets the process that prepares go; unfinished files are removed, now or by itself.

        After a compaction it still frees the old file's space, which takes some time.
        """
        if self._helper is None:
            return
        if self._done:
            self._helper.release()
        else:
            self._helper.close()
        with contextlib.suppress(StorageError):  # leftovers are removed at the next opportunity
            self._writer.discard()

    def wait(self) -> None:
        """After `close`: waits until the child process has ended, and reaps it."""
        if self._helper is not None:
            self._helper.wait(_END_S)
