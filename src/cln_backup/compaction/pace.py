"""Writes a snapshot beside a node's writer, which has priority."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from cln_backup.storage import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cln_backup.model.change import Snapshot

_PIECE_BYTES: Final = 1 << 16
_PAUSE: Final = 4.0


class PacedSnapshot:
    """A snapshot in small pieces, with pauses that leave the disk to the node's writer."""

    def __init__(
        self, snapshot: Snapshot, place: str | None, check: Callable[[], None] | None = None
    ) -> None:
        """`check` is called after each piece, and may raise.

        `place` is a directory on the disk that it is written to, if it is one of this machine.
        """
        self._snapshot = snapshot
        self._place = place
        self._check = check
        self.size_bytes = snapshot.size_bytes

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes in order; after each piece, a pause in proportion to its writing.

        The time in which other processes had the processor does not count.
        """
        for chunk in self._snapshot.chunks():
            for start in range(0, len(chunk), _PIECE_BYTES):
                if self._place is not None:
                    scratch.require_room(self._place, op="compact")
                given_s = time.monotonic() - _delayed_s()
                yield chunk[start : start + _PIECE_BYTES]
                if self._check is not None:
                    self._check()
                time.sleep(max(0.0, time.monotonic() - _delayed_s() - given_s) * _PAUSE)


def _delayed_s() -> float:
    """How long this thread has waited for a processor so far; 0 if the system does not say."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
