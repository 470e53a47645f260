"""A lock among the processes of one machine, for something that is not on this machine.

On Linux, a socket with an abstract name: no file, so neither a private /tmp nor a read-only home is
in the way, and the kernel releases it when the process ends. Other systems have no such names;
there it excludes no other process.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import sys

from cln_backup.model.errors import StorageError


class Taken(Exception):
    """Another process has the lock.

    Attributes:
        pid: of that process; `None` if unknown.
    """

    def __init__(self, pid: int | None) -> None:
        super().__init__("taken")
        self.pid = pid


class MachineLock:
    """Held until it is released, or the process ends; child programs do not inherit it."""

    def __init__(self, name: str) -> None:
        """Takes the lock of this name, of any length.

        Raises:
            Taken: another process of this machine, or this one, has it.
            StorageError: the system failed.
        """
        self._sockets: list[socket.socket] = []
        if sys.platform != "linux":
            return
        address = "cln-backup-" + hashlib.sha256(name.encode()).hexdigest()
        try:
            self._bind(address)
            self._bind(f"{address}-{os.getpid()}")  # says who has it
        except OSError as error:
            self.release()
            if error.errno != errno.EADDRINUSE:
                raise StorageError(f"Cannot lock {name}: {error.strerror}.") from error
            raise Taken(_holder(address)) from None

    def _bind(self, address: str) -> None:
        found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sockets.append(found)
        found.bind("\0" + address)

    def release(self) -> None:
        """Releases the lock; idempotent."""
        for one in reversed(self._sockets):
            one.close()
        self._sockets = []


def _holder(address: str) -> int | None:
    """The process that has the lock, as the system's list of sockets names it."""
    try:
        with open("/proc/net/unix", encoding="ascii", errors="replace") as sockets:
            found = re.search(rf"@{address}-(\d+)$", sockets.read(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1])
