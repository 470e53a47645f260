"""Reads large pieces in a thread, while the caller works on earlier ones.

Reading, hashing, decrypting, decompressing and writing them all run without Python's lock.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

_PIECES_AHEAD: Final = 2

_SEEN_BYTES: Final = 24 << 20
"""glibc gives each freed block of some 100 KiB back to the system, and the next one has to be
mapped again, page by page, unless it has seen a larger block being freed (mallopt(3))."""


@contextlib.contextmanager
def read_in_thread(pieces: Iterator[T]) -> Iterator[Iterator[T]]:
    """The same pieces, a few of them read ahead; the thread ends with the block.

    Raises:
        BaseException: what `pieces` raises, from the iterator.
    """
    bytes(_SEEN_BYTES)
    reading = _Reading(pieces)
    thread = threading.Thread(target=reading.read, name="reads ahead", daemon=True)
    thread.start()
    try:
        yield reading.pieces()
    finally:
        reading.stop()
        thread.join()


class _Reading(Generic[T]):
    def __init__(self, pieces: Iterator[T]) -> None:
        self._source = pieces
        self._read: deque[T] = deque()
        self._changed = threading.Condition()
        self._is_done = self._stops = False
        self._error: BaseException | None = None

    def read(self) -> None:
        try:
            for piece in self._source:
                with self._changed:
                    self._read.append(piece)
                    self._changed.notify()
                    self._changed.wait_for(lambda: len(self._read) < _PIECES_AHEAD or self._stops)
                    if self._stops:
                        return
        except BaseException as error:  # noqa: BLE001 - raised in the other thread
            self._error = error
        finally:
            with self._changed:
                self._is_done = True
                self._changed.notify()

    def pieces(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._read or self._is_done)
                if not self._read:
                    break
                piece = self._read.popleft()
                self._changed.notify()
            yield piece
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        with self._changed:
            self._stops = True
            self._changed.notify()
