"""A snapshot in protocol 1: one packet of any size, preceded by its length."""

from __future__ import annotations

import itertools
import zlib
from typing import TYPE_CHECKING

from cln_backup.formats import digests, v1
from cln_backup.model.errors import BadPacket
from cln_backup.wire import packets as wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.model.change import Snapshot
    from cln_backup.storage.spool import Spool
    from cln_backup.wire.channel import Channel


def pack_snapshot(snapshot: Snapshot, packed: Spool) -> None:
    """Compresses a snapshot for protocol 1, which needs the compressed length first."""
    packer = zlib.compressobj()
    for chunk in snapshot.chunks():
        packed.write(packer.compress(chunk))
    packed.write(packer.flush())


def send_snapshot(channel: Channel, version: int, packed: Spool) -> None:
    """Sends the output of `pack_snapshot`. Raises `BadChange` if it does not fit in a packet."""
    channel.send_head(wire.SNAPSHOT, 4 + packed.size_bytes)
    channel.send_bytes(wire.pack_version(version))
    for chunk in packed.chunks():
        for start in range(0, len(chunk), wire.CHUNK_BYTES):
            channel.send_bytes(chunk[start : start + wire.CHUNK_BYTES])


def unpack_snapshot(pieces: Iterator[bytes], spool: Spool, limit_bytes: int) -> tuple[int, bytes]:
    """Spools a snapshot from a packet of protocol 1; returns its version and digest.

    Memory is constant. Raises `BadPacket`, `StorageError`, and the errors of `pieces`.
    """
    start = b""
    for piece in pieces:
        start += piece
        if len(start) >= 4:
            break
    version = wire.unpack_version(start[:4])
    digest = digests.change_digest(v1.SNAPSHOT, version)
    stream = zlib.decompressobj()
    try:
        for packed in itertools.chain((start[4:],), pieces):
            rest = packed
            while rest:
                content = stream.decompress(rest, wire.CHUNK_BYTES)
                rest = stream.unconsumed_tail
                if spool.size_bytes + len(content) > limit_bytes:
                    raise BadPacket(
                        f"a snapshot larger than {limit_bytes} bytes after decompression"
                    )
                digest.update(content)
                spool.write(content)
                if stream.unused_data:
                    raise BadPacket("a compressed snapshot with trailing bytes")
    except zlib.error:
        raise BadPacket("a snapshot that is not valid zlib data") from None
    if not stream.eof:
        raise BadPacket("a compressed snapshot that is truncated")
    return version, digest.digest()
