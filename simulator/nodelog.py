"""The node's log, in lightningd's format (`lightningd/log.c`)."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO


class Level(IntEnum):
    """lightningd's levels, and what its parser accepts for them (`common/status_levels.c`)."""

    TRACE = 0
    DEBUG = 1
    INFO = 2
    UNUSUAL = 3
    BROKEN = 4

    @classmethod
    def parse(cls, name: str) -> Level:
        """Read a level from a plugin's `log` notification, in upper or lower case.

        Raises:
            ValueError: lightningd does not know it, or does not accept it from plugins (`io`).
        """
        levels = {level.name: level for level in cls} | {"WARN": cls.UNUSUAL, "ERROR": cls.BROKEN}
        try:
            return levels[name.upper()]
        except KeyError:
            raise ValueError(name) from None


_PRINTED = {
    Level.TRACE: "TRACE  ",
    Level.DEBUG: "DEBUG  ",
    Level.INFO: "INFO   ",
    Level.UNUSUAL: "UNUSUAL",
    Level.BROKEN: "**BROKEN**",
}


class NodeLog:
    """Writes lines to a file, and those of some importance to stderr.

    Args:
        path: the file, appended to line by line; `None` for none.
        stderr_level: what is printed to stderr as well.
    """

    def __init__(self, path: str | None, stderr_level: Level) -> None:
        self._file: TextIO | None = None
        if path is not None:
            # Line-buffered, so that nothing is lost when the node kills itself.
            self._file = open(path, "a", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        self._stderr_level = stderr_level

    def write(self, level: Level, source: str, text: str) -> None:
        """Log one line, with the time in UTC."""
        now = datetime.now(timezone.utc)
        stamp = f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d}Z"
        line = f"{stamp} {_PRINTED[level]} {source}: {text}\n"
        if self._file is not None:
            self._file.write(line)
        if level >= self._stderr_level:
            sys.stderr.write(line.encode("utf-8", "backslashreplace").decode())
            sys.stderr.flush()
