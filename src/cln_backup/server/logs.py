"""The server's log on standard output: plain, with the journal's levels, or JSON."""

from __future__ import annotations

import json
import logging
import sys

NOTICE = 25
LEVELS = ("debug", "info", "notice", "warning", "error", "critical")
MODES = ("plain", "systemd", "json")

_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (NOTICE, 5),
    (logging.INFO, 6),
)


class _Journal(logging.Formatter):
    """Prefixes each line with a level for the journal (sd-daemon(3)), which adds the time."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next((p for level, p in _PRIORITIES if record.levelno >= level), 7)
        lines = super().format(record).splitlines()
        return "\n".join(f"<{priority}>{line}" for line in lines)


class _Json(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def set_up(mode: str, level: str) -> None:
    """Sends the log of everything in this process to standard output."""
    logging.addLevelName(NOTICE, "NOTICE")
    handler = logging.StreamHandler(sys.stdout)
    if mode == "json":
        handler.setFormatter(_Json())
    elif mode == "systemd":
        handler.setFormatter(_Journal("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
