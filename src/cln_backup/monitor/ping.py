"""A ping at regular times: a dead man's switch, as healthchecks.io and its kin expect it."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from cln_backup.monitor.receivers import NotDelivered, host_of, request

INTERVAL_S: Final = 60.0

_log = logging.getLogger(__name__)


class Ping:
    """Sends a GET a minute. Its absence is the message: none is tried a second time."""

    def __init__(self, url: str) -> None:
        """Raises `BadSettings` if the URL is not one of HTTP."""
        self._host = host_of(url)
        self._url = url
        self._due_s = time.monotonic()
        self._thread: threading.Thread | None = None
        self._failed = False

    def send_if_due(self) -> None:
        """Sends one in the background, if it is time to and the last one has ended."""
        if time.monotonic() < self._due_s or (self._thread and self._thread.is_alive()):
            return
        self._due_s = time.monotonic() + INTERVAL_S
        self._thread = threading.Thread(target=self._send, name="ping", daemon=True)
        self._thread.start()

    def _send(self) -> None:
        try:
            request(self._url)
        except NotDelivered as error:
            if not self._failed:
                _log.warning("%s does not take the ping: %s", self._host, error)
            self._failed = True
        else:
            self._failed = False
