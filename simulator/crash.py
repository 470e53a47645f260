"""Where the node, or its plugin, is to die."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import apsw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

VFS = "simulator-crash"
KILL_PLUGIN = "kill-plugin"
IN_COMMIT = "in-commit"
IN_PLUGIN = "in-plugin"

# For each point its settings, the default first if there is a choice.
POINTS: dict[str, dict[str, tuple[str, ...]]] = {
    "before-hook": {},
    IN_PLUGIN: {"bytes": ()},
    "after-answer": {},
    IN_COMMIT: {"step": ("write", "sync", "delete", "done")},
    KILL_PLUGIN: {"when": ("before", "sent"), "delay-ms": ()},
}

HELP = """\
crash points, as POINT@CALL or POINT@CALL:SETTING=VALUE; calls are counted from 0:
  before-hook@K        the node dies inside the transaction, before the hook is called
  in-plugin@K          the node dies right after sending the request, before reading an answer
    bytes=N              after the first N bytes of it
  after-answer@K       the hook has answered, nothing is committed
  in-commit@K          the node dies inside SQLite's COMMIT; step=
    write                after the first page written to the database (or the WAL); the default
    sync                 all written, before it is synced; in WAL mode the change is then there
    delete               all synced, before the rollback journal goes; not in WAL mode
    done                 the change is committed, COMMIT has not returned
  kill-plugin@K        the plugin dies, not the node; when=
    before               while it is idle before the call; the default
    sent                 right after the request was sent
    delay-ms=N           N ms after the request was sent (with when=sent)
"""


class PlanError(ValueError):
    """A crash point is not understood."""


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """One planned death.

    Attributes:
        at: the index of the call.
        point: a key of `POINTS`.
        size_bytes: for `in-plugin`, how much of the request is written; `None` is all.
        step: for `in-commit`, how far the commit gets.
        when: for `kill-plugin`, before the call or once it is sent.
        delay_s: for `kill-plugin`, how long after it was sent.
    """

    at: int
    point: str
    size_bytes: int | None = None
    step: str = "write"
    when: str = "before"
    delay_s: float = 0.0

    @property
    def kills_node(self) -> bool:
        """Whether the node's process ends here."""
        return self.point != KILL_PLUGIN

    def __str__(self) -> str:
        step = f":step={self.step}" if self.point == IN_COMMIT else ""
        return f"{self.point}@{self.at}{step}"


def parse_point(text: str) -> CrashPoint:
    """Read a crash point as the command line has it.

    Raises:
        PlanError: it is not understood.
    """
    head, _, tail = text.partition(":")
    point, at_sign, at = head.partition("@")
    if not at_sign or not at.isdigit():
        raise PlanError(f"{text}: a crash point is POINT@CALL")
    settings = dict(part.partition("=")[::2] for part in tail.split(",") if part)
    return _crash_point(int(at), point, settings)


def _crash_point(at: int, point: str, settings: dict[str, str]) -> CrashPoint:
    if point not in POINTS:
        raise PlanError(f"{point}: crash points are {', '.join(POINTS)}")
    for name, value in settings.items():
        if name not in POINTS[point]:
            raise PlanError(f"{point} has no setting {name}")
        choices = POINTS[point][name]
        if choices and value not in choices:
            raise PlanError(f"{point}: {name} is one of {', '.join(choices)}")
    size = settings.get("bytes")
    delayed = "delay-ms" in settings
    return CrashPoint(
        at,
        point,
        size_bytes=None if size is None else int(size),
        step=settings.get("step", "write"),
        when="sent" if delayed else settings.get("when", "before"),
        delay_s=float(settings.get("delay-ms", 0)) / 1000,
    )


class CrashPlan:
    """The crash points one process has before it, in the order of their calls."""

    def __init__(self, points: Iterable[CrashPoint]) -> None:
        self._points = deque(points)

    def at(self, index: int) -> CrashPoint | None:
        """Take the point planned for a call; those of calls that have passed are dropped."""
        while self._points and self._points[0].at < index:
            self._points.popleft()
        if self._points and self._points[0].at == index:
            return self._points.popleft()
        return None

    @property
    def needs_vfs(self) -> bool:
        """Whether SQLite has to be watched from inside."""
        return any(point.point == IN_COMMIT for point in self._points)


def die() -> NoReturn:
    """End this process as a power switch would end it: nothing is closed or flushed by it."""
    os.kill(os.getpid(), signal.SIGKILL)
    while True:  # the signal is on its way
        time.sleep(1)


class CrashVfs(apsw.VFS):
    """SQLite's usual file access, which kills the process at a step of a commit once it is armed.

    Each database that shall die in a commit is opened with `vfs=VFS` after one of these was made.
    """

    def __init__(self) -> None:
        self._step: str | None = None
        super().__init__(VFS, "")

    def arm(self, step: str) -> None:
        """Die at this step from now on."""
        self._step = step

    def reached(self, step: str) -> None:
        """Die if this is the step."""
        if self._step == step:
            die()

    def xOpen(  # noqa: N802 - SQLite's name
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile:
        """Open a file whose writes are watched."""
        return _CrashFile(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        """Delete a file: for a rollback journal this is the moment of commit."""
        self.reached("delete")
        super().xDelete(filename, syncdir)
        self.reached("done")


class _CrashFile(apsw.VFSFile):
    """The database or the write-ahead log; operations on a rollback journal are not steps."""

    def __init__(
        self, vfs: CrashVfs, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> None:
        super().__init__("", name, flags)
        self._watched: Callable[[str], None] | None = None
        self._wal = bool(flags[0] & apsw.SQLITE_OPEN_WAL)
        if flags[0] & (apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_WAL):
            self._watched = vfs.reached

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        super().xWrite(data, offset)
        if self._watched:
            self._watched("write")

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._watched:
            self._watched("sync")
        super().xSync(flags)
        if self._watched and self._wal:
            self._watched("done")
