"""Receives large payloads from clients: they are spooled to disk until they are complete."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.formats import encoding
from cln_backup.model.errors import BadPacket, StorageError
from cln_backup.storage import scratch
from cln_backup.storage.spool import Spool
from cln_backup.wire import packets as wire
from cln_backup.wire.pieces import Arriving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from typing_extensions import Self

    from cln_backup.wire.channel import Channel

    T = TypeVar("T")

PIECE_S = 10.0
"""How long the next piece of a snapshot may take to begin."""

_SMALL_BYTES = 1 << 22
_large_ones = threading.BoundedSemaphore(2)


class Received(NamedTuple):
    """A snapshot that was received completely."""

    version: int
    spool: Spool
    digest: bytes


@contextlib.contextmanager
def unpacked(
    channel: Channel,
    length_bytes: int,
    unpack: Callable[[bytes, int], T],
    scratch_dir: Callable[[], str],
) -> Iterator[T]:
    """Decodes a packet. Large ones are on disk until it is their turn to be in memory.

    Raises:
        BadPacket: it is not valid; the connection cannot continue.
        StorageError: the disk is full; the packet was read to its end.
        OSError: the connection is lost.
    """
    if length_bytes > wire.MAX_CHANGE_BYTES + wire.APPEND_BYTES:
        raise BadPacket(f"a change of {length_bytes} bytes, which is too large")
    if length_bytes <= _SMALL_BYTES:
        payload = channel.payload(length_bytes, _SMALL_BYTES)
        try:
            content = unpack(payload, _SMALL_BYTES)
        except encoding.TooLarge:
            with _large_ones:
                yield unpack(payload, wire.MAX_CHANGE_BYTES)
        else:
            yield content
        return
    with _Intake(scratch_dir()) as intake:
        for piece in channel.pieces(length_bytes):
            intake.take(piece)
        spool = intake.whole()
        with _large_ones:
            yield unpack(b"".join(spool.chunks()), wire.MAX_CHANGE_BYTES)


@contextlib.contextmanager
def snapshot(channel: Channel, begin: bytes, scratch_dir: str) -> Iterator[Received]:
    """The snapshot after a SNAPSHOT_BEGIN, its digest checked. Raises as `unpacked`."""
    arriving = Arriving(begin)
    with _Intake(scratch_dir, arriving.size_bytes) as intake:
        while True:
            found = channel.head(PIECE_S)
            if found is None:
                raise ConnectionResetError("closed in the middle of a snapshot")
            payload = channel.payload(found[1], wire.CHUNK_BYTES + 1024)
            if found[0] == wire.SNAPSHOT_END:
                break
            if found[0] != wire.SNAPSHOT_DATA:
                raise BadPacket(f"a packet of type {found[0]} in the middle of a snapshot")
            intake.take(arriving.take(payload))
        if not arriving.is_whole(payload):
            raise BadPacket("a snapshot whose size or digest does not match")
        yield Received(arriving.version, intake.whole(), payload)


class _Intake:
    """A spool that reads everything the client sends even if the disk is full, to report that."""

    def __init__(self, directory: str, size_bytes: int = 0) -> None:
        self._spool = Spool(directory)
        self._failure: StorageError | None = None
        try:
            scratch.require_room(directory, op="receive a snapshot", needed_bytes=size_bytes)
        except StorageError as error:
            self._failure = error

    def take(self, piece: bytes) -> None:
        """Stores a piece, as long as there is space."""
        if self._failure is not None:
            return
        try:
            self._spool.write(piece)
        except StorageError as error:
            self._failure = error
            self._spool.close()

    def whole(self) -> Spool:
        """All pieces. Raises `StorageError` if they could not be stored."""
        if self._failure is not None:
            raise self._failure
        return self._spool

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._spool.close()
