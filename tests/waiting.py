"""Waiting in tests: for a condition, or for another process to end, and never without a limit."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Found = TypeVar("_Found")

WAIT_S = 100.0
"""The maximum wait for what takes a moment on an idle machine; pytest stops a test after 120 s."""


def wait_for(
    find: Callable[[], _Found],
    wanted: Callable[[_Found], object] = bool,
    missing: str | Callable[[], object] = "",
    *,
    pause_s: float = 0.01,
) -> _Found:
    """Waits until what it finds is wanted, and returns that.

    Args:
        find: is called again and again.
        wanted: whether that is it.
        missing: what the failure says, besides what was found last, if it never is; may be a
            function that finds it out then.
        pause_s: seconds between two attempts.
    """
    deadline_s = time.monotonic() + WAIT_S
    while not wanted(found := find()):
        if time.monotonic() > deadline_s:
            said = missing if isinstance(missing, str) else missing()
            raise AssertionError(f"Waited for {WAIT_S:.0f} s. {said}\nFound last: {found!r}")
        time.sleep(pause_s)
    return found


def wait_until(
    condition: Callable[[], object], missing: str | Callable[[], object], *, pause_s: float = 0.01
) -> None:
    """Waits until a condition is true; the arguments are those of `wait_for`."""
    wait_for(condition, missing=missing, pause_s=pause_s)


def has_ended(pid: int) -> bool:
    """Whether a process has ended, even if nobody has reaped it.

    It may stay a zombie for ever: in a container, process 1 often reaps no orphans.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_ended(*pids: int) -> None:
    """Waits until none of these processes runs; they need not be children of this one."""
    wait_until(lambda: all(map(has_ended, pids)), f"One of the processes {pids} still runs.")


def wait_for_process_in(directory: Path, words: str) -> int:
    """The id of the process that works in a directory and has these words in its command line."""
    found = wait_for(lambda: _processes_in(directory, words.encode()), missing=f"No {words}.")
    return found[0]


def _processes_in(directory: Path, words: bytes) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if words in (process / "cmdline").read_bytes() and directory.samefile(process / "cwd"):
                found.append(int(process.name))
    return found
