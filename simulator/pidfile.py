"""The node's pid file and the lock on it (`lightningd/lightningd.c`, `pidfile_create`)."""

from __future__ import annotations

import fcntl
import os

from simulator.settings import Exit, FatalError


class PidFile:
    """A locked pid file.

    The lock is POSIX's (`lockf`): it goes with the process, and with any other descriptor of the
    file that this process closes.

    Args:
        path: the file; what it holds is overwritten.

    Raises:
        FatalError: another process holds the lock, or the file cannot be created.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise FatalError(Exit.PLUGIN, f"Failed to open PID file: {error}") from None
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise FatalError(
                Exit.PID_FILE, f"lightningd already running? Error locking PID file: {error}"
            ) from None
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def remove(self) -> None:
        """Delete the file; the lock goes with the process."""
        os.unlink(self._path)
