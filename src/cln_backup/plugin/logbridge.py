"""Forwards the log of the layers below the plugin to lightningd's log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class _Bridge(logging.Handler):
    def __init__(self, log: Callable[[str, str], None]) -> None:
        super().__init__()
        self._forward = log

    def emit(self, record: logging.LogRecord) -> None:
        level = "warn" if record.levelno >= logging.WARNING else "info"
        self._forward(level, record.getMessage())


def forward(log: Callable[[str, str], None]) -> None:
    """Passes every record of this project on as level (`info`, `warn`) and message, at once."""
    logger = logging.getLogger("cln_backup")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(_Bridge(log))
