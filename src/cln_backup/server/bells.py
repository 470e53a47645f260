"""Wakes the connections that wait for more of a backup."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Bells:
    """The bells of one backup: each waiting reader has one; a change of the backup rings them.

    A bell is a pipe, so that a reader can wait for it and for a connection at once. Ringing costs
    nothing while there are no waiting readers.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fds: set[int] = set()

    @contextlib.contextmanager
    def bell(self) -> Iterator[int]:
        """A descriptor that can be read once the backup has changed after the block began."""
        heard, rung = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with self._lock:
                self._fds.add(rung)
            yield heard
        finally:
            with self._lock:
                self._fds.discard(rung)
            os.close(rung)
            os.close(heard)

    def ring(self) -> None:
        """Wakes all waiting readers."""
        if not self._fds:
            return
        with self._lock:
            for fd in self._fds:
                with contextlib.suppress(BlockingIOError):  # full: it was rung already
                    os.write(fd, b"\0")
