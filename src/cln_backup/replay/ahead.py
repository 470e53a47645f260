"""Reads changes in a second process, while this one replays those before.

What is sealed and compressed is as much work to read as a short transaction is to replay, and the
two are done by two programs that share nothing: each has its own processor and its caches.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import signal
import struct
from typing import TYPE_CHECKING, Final, NoReturn

from cln_backup.model.change import Change
from cln_backup.model.errors import BackupError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.contract import Backend

_RUN_CHARACTERS: Final = 1 << 17
"""Of statements that are sent at once."""

_PIPE_BYTES: Final = 1 << 20
_LENGTH: Final = struct.Struct("!Q")
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def read_ahead(backend: Backend) -> Iterator[Iterator[Change]]:
    """The changes of a backup; where reading is work, a second process does it.

    It ends with the block at the latest. Where the system has no process to spare, this one reads.

    Raises:
        BackupError: what `Backend.stream_changes` raises, from the iterator; also `StorageError`,
            where the second process was killed.
    """
    changes = backend.stream_changes()
    if not backend.slow_to_read:
        yield changes
        return
    readable, writable = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # while there are two of us here
    try:
        pid = os.fork()
    except OSError:
        pid = -1
    if pid == 0:
        _send_all(changes, readable, writable)
    os.close(writable)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with contextlib.suppress(OSError, AttributeError):  # a larger pipe is no more than faster
            fcntl.fcntl(readable, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        yield changes if pid < 0 else _received(readable)
    finally:
        os.close(readable)
        if pid > 0:
            _end(pid)


def _end(pid: int) -> None:
    """Ends the second process, also where somebody stopped it; it has nothing to lose."""
    with contextlib.suppress(ChildProcessError, ProcessLookupError):  # the system reaped it
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _send_all(changes: Iterator[Change], readable: int, writable: int) -> NoReturn:
    """The second process: sends runs of changes, then `None` or an error, and ends.

    The first one says when it ends; the signals that would end both stay blocked.
    """
    try:
        os.close(readable)
        last: Exception | None = None
        try:
            for run in _runs(changes):
                _send(writable, run)
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the first process must hear it
            last = error
        _send(writable, last)
    finally:
        os._exit(0)  # nothing of the first process's may be flushed or closed here


def _runs(changes: Iterator[Change]) -> Iterator[list[tuple[object, ...]]]:
    run: list[tuple[object, ...]] = []
    characters = 0
    try:
        for change in changes:
            run.append((change.version, change.snapshot, change.transaction, change.stored_ms))
            characters += 0 if change.transaction is None else sum(map(len, change.transaction))
            if characters >= _RUN_CHARACTERS or change.transaction is None:
                yield run
                run, characters = [], 0
    except BackupError:
        yield run
        raise
    yield run


def _send(fd: int, message: object) -> None:
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    for part in (_LENGTH.pack(len(data)), data):
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(fd, rest) :]


def _received(fd: int) -> Iterator[Change]:
    while True:
        (length,) = _LENGTH.unpack(_read(fd, _LENGTH.size))
        message = pickle.loads(_read(fd, length))  # noqa: S301 - from this program itself
        if message is None:
            return
        if isinstance(message, Exception):
            raise message
        for fields in message:
            yield Change(*fields)


def _read(fd: int, length_bytes: int) -> bytearray:
    data = bytearray(length_bytes)
    view = memoryview(data)
    while view:
        got = os.readv(fd, [view])
        if got == 0:
            raise StorageError(
                "The process that read the backup was ended in the middle, perhaps because memory "
                "ran out. The backup is as it was; try again."
            )
        view = view[got:]
    return data
