"""The process that rolls the database forward when its node has ended.

It outlives the node that it was started by, and can no longer log through lightningd: it writes
`backup.rollforward.log`, which the next start reads. One at a time does the work: it holds
a lock on that file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import (
    BackupError,
    Discontinuity,
    NodeRunning,
    ReplayFailed,
    StorageError,
)
from cln_backup.node.rollforward_marker import LOG_NAME, read_marker, write_marker
from cln_backup.operations.rollforward import complete
from cln_backup.plugin.faults import fault
from cln_backup.process.channel import Message
from cln_backup.process.parent import Parent, serve
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from cln_backup.operations.rollforward import RolledForward

MODULE: Final = "cln_backup.plugin.rollforward_process"

_OP: Final = "write backup.rollforward.log"
_TRIES: Final = 4
_PAUSE_S: Final = 2.0
"""Before the second try; doubled before each further one."""

_MAX_LOG_BYTES: Final = 1 << 16


class Begin(Message):
    """The request.

    Attributes:
        directory: the node's network directory.
        wait_s: how long to wait for the end of the node.
    """

    directory: str
    wait_s: float


class _Log:
    """The log file, with a lock on it."""

    def __init__(self, directory: str) -> None:
        """Raises `BlockingIOError` if another process has it, `StorageError`."""
        self._fd = fsio.open_lock(os.path.join(directory, LOG_NAME), op=_OP)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._end = fsio.size_bytes(self._fd)
            if self._end > _MAX_LOG_BYTES:
                fsio.truncate(self._fd, 0, op=_OP)
                self._end = 0
        except BaseException:
            os.close(self._fd)
            raise

    def write(self, text: str) -> None:
        """Adds a line with the time. An error is not important enough to end the work."""
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n"
        with contextlib.suppress(StorageError):
            self._end = fsio.write_at(self._fd, [line.encode()], self._end, op=_OP)

    def close(self) -> None:
        os.close(self._fd)


def _run(begin: Begin, _parent: Parent[Message]) -> None:
    # It continues after the end of the node, of its terminal and of its service; a kill is safe.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    try:
        log = _Log(begin.directory)
    except BlockingIOError:  # another such process is at work
        return
    try:
        _work(begin, log)
    finally:
        log.close()


def _work(begin: Begin, log: _Log) -> None:
    """Tries a few times; an error that will not go away is noted in the marker."""
    pause_s = _PAUSE_S
    for left in reversed(range(_TRIES)):
        try:
            done = complete(begin.directory, begin.wait_s)
        except NodeRunning as error:
            log.write(f"Not rolled forward: {error}")
            return
        except StorageError as error:
            again = f" Trying again in {pause_s:g} s." if left else ""
            log.write(f"Not rolled forward: {error}.{again}")
        except Exception as error:  # noqa: BLE001 - the log is the only place for it
            why = str(error) if isinstance(error, BackupError) else fault(error)
            log.write(f"Not rolled forward: {why}")
            if isinstance(error, Discontinuity | ReplayFailed):
                marker = read_marker(begin.directory)
                if marker is not None:
                    write_marker(begin.directory, marker.refusing(why))
            return
        else:
            if done is not None:
                log.write(told(done))
            return
        if left:
            time.sleep(pause_s)
            pause_s *= 2


def told(done: RolledForward) -> str:
    """The result in one sentence or two."""
    if done.changes == 0:
        return f"Nothing is missing: {done.database} is at version {done.version}."
    return (
        f"Rolled {done.database} forward from version {done.version_before} to {done.version}, and "
        f"compared it with the backup. The database as found is kept in {done.kept}: delete it "
        "once the node has run well."
    )


if __name__ == "__main__":
    serve(_run, Begin)
