"""Work that only looks, in a copy of this process (`fork`), so that nothing in it can hurt a start.

Whatever happens there (a crash, an endless loop, no memory), the worker continues when the time
is over. A copy is there at once; another program would have to be loaded first.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import StorageError
from cln_backup.plugin.start.messages import Looked
from cln_backup.process.orphan import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from cln_backup.plugin.start.messages import Look

_RESULT_FD: Final = 3
_READ_BYTES: Final = 1 << 16


def aside(work: Callable[[], bytes], until: float) -> bytes:
    """Runs `work` in a copy of this process, which has none of its files open; returns its result.

    `work` may hold objects, but no open file, socket or database of this process. The copy is
    killed at `until`, in monotonic time, and when this process ends.

    Raises:
        StorageError: it was not finished in time, or failed.
    """
    try:
        readable, writable = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            os.close(readable)
            os.close(writable)
            raise
    except OSError as error:
        raise StorageError(f"Cannot start a process: {error.strerror}.") from error
    if pid == 0:
        _work(work, writable)
    os.close(writable)
    try:
        return _received(readable, until)
    finally:
        os.close(readable)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def anew(wanted: Look, until: float) -> bytes:
    """As `aside`, in a new process: for a place whose library does not work in a copy.

    Raises:
        StorageError: it was not finished in time, or failed.
    """
    from cln_backup.process.child import Child

    module = "cln_backup.plugin.start.looking"
    with Child[Looked](module, wanted, (Looked,), work="compares") as child:
        poll = select.poll()
        poll.register(child, select.POLLIN)
        while poll.poll(max(0.0, until - time.monotonic()) * 1000):
            said = child.step()
            if said is not None:
                return said.found
    raise StorageError("It takes longer than the node can wait.")


def _received(fd: int, until: float) -> bytes:
    result, poll = bytearray(), select.poll()
    poll.register(fd, select.POLLIN)
    while poll.poll(max(0.0, until - time.monotonic()) * 1000):
        read = os.read(fd, _READ_BYTES)
        if not read:
            if not result:
                raise StorageError("The process that compares ended unexpectedly.")
            return bytes(result)
        result += read
    raise StorageError("It takes longer than the node can wait.")


def _work(work: Callable[[], bytes], fd: int) -> NoReturn:
    try:
        with contextlib.suppress(BaseException):  # the parent hears that there is no result
            _keep_only(fd)
            result = memoryview(work())
            while result:
                result = result[os.write(_RESULT_FD, result) :]
    finally:
        os._exit(0)


def _keep_only(fd: int) -> None:
    """Closes everything else: lightningd's pipes, and what has the lock on the backup."""
    os.dup2(fd, _RESULT_FD)
    os.closerange(_RESULT_FD + 1, 1 << 16)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    signal.set_wakeup_fd(-1)
    die_with_parent()
