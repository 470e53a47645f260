"""The lock on a node's pid file: while a process holds it, no lightningd can start.

lightningd locks the file before it opens its database (lightningd/lightningd.c, `pidfile_create`).
The lock is POSIX's (`lockf`): it ends with the process, and also when the process closes any other
descriptor of the same file. So nothing else in this process may open it meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import time
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import NodeRunning, StorageError
from cln_backup.node.outside import option_in_configuration
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import NoReturn

_LOCK: Final = "lock the node's pid file"
_WHOLE_FILE: Final = re.compile(r"^lock:.*\bPOSIX\b.*\bWRITE\b.* 0 EOF$", re.MULTILINE)


def pid_file_in_use(lightningd: int) -> str | None:
    """The path of the pid file that a lightningd has locked; `None` if the system does not tell.

    Looks at the locks of its open files, and opens none of them.
    """
    place = f"/proc/{lightningd}/fd"
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(place), key=int):
            with contextlib.suppress(OSError):
                with open(f"/proc/{lightningd}/fdinfo/{name}", encoding="ascii") as file:
                    locked = _WHOLE_FILE.search(file.read())
                path = os.readlink(f"{place}/{name}")
                if locked and os.path.isfile(path):
                    return path
    return None


def pid_file_of(directory: str) -> str:
    """Where the node of a network directory has its pid file, by its configuration files."""
    directory = os.path.realpath(directory)
    found = option_in_configuration(directory, "pid-file")
    if found is not None:
        return os.path.join(directory, found[1])
    base, network = os.path.split(directory)
    return os.path.join(base, f"lightningd-{network}.pid")


@contextlib.contextmanager
def nodes_kept_out(path: str, wait_s: float = 0.0) -> Iterator[None]:
    """Holds the lock on a pid file during this block; makes the file if there is none.

    Waits until the process that holds the lock ends. The kernel wakes this process as soon as that
    one is gone, before a supervisor can have started another lightningd. Call it from the main
    thread if it is to wait.

    Raises:
        NodeRunning: another process still held the lock after `wait_s`.
        StorageError: the file cannot be made or locked.
    """
    path = os.path.realpath(path)
    deadline_s = time.monotonic() + wait_s
    while True:
        fd = fsio.open_lock(path, op=_LOCK)
        try:
            _lock(fd, path, deadline_s)
            if _leads_to(path, fd):  # lightningd removes the file when it shuts down
                yield
                return
        finally:
            os.close(fd)


def _lock(fd: int, path: str, deadline_s: float) -> None:
    try:
        with contextlib.suppress(BlockingIOError, PermissionError):
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise _running(path)
        before = signal.signal(signal.SIGALRM, _too_long)
        signal.setitimer(signal.ITIMER_REAL, left_s)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX)
        except TimeoutError:
            raise _running(path) from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    except OSError as error:
        raise StorageError(f"Cannot {_LOCK} {path}: {error.strerror or error}") from error


def _too_long(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise TimeoutError


def _running(path: str) -> NodeRunning:
    return NodeRunning(
        f"lightningd is running: another process has locked {path}. Nothing was touched. Stop the "
        "node first (lightning-cli stop)."
    )


def _leads_to(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False
