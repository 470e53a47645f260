"""`backup-cli` on a terminal of a given width."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from typing import Any

from tests import programs


def shown_on(columns: int, *arguments: object, **environment: str) -> str:
    """Runs a command on a terminal of this width; returns what the terminal was sent."""
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 50, columns, 0, 0))
    environ = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), follower)
    process = programs.start("backup-cli", *arguments, env=environ | environment, **streams)
    os.close(follower)
    shown = b""
    with process:
        while data := _read(leader):
            shown += data
    os.close(leader)
    assert b"Traceback" not in shown
    return shown.decode().replace("\r\n", "\n")


_SETTINGS = ("COLUMNS", "LINES", "NO_COLOR", "TERM")


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 4096)
    except OSError:  # the other side has gone
        return b""
