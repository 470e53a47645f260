"""Data that crosses the wire as it is or compressed, and what it may become there."""

from __future__ import annotations

import zlib
from typing import Final

from cln_backup.model.errors import BadPacket

PLAIN: Final = 0
DEFLATED: Final = 1

_PIECE_BYTES = 1 << 18


class TooLarge(BadPacket):
    """Compressed data that becomes larger than the limit."""


def decoded(encoding: int, data: bytes, limit_bytes: int) -> bytes:
    """The data behind an encoding of the wire. Raises `TooLarge`, `BadPacket`."""
    if encoding == PLAIN:
        if len(data) > limit_bytes:
            raise TooLarge(f"{len(data)} bytes, where {limit_bytes} are the most")
        return data
    if encoding == DEFLATED:
        return inflate(data, limit_bytes)
    raise BadPacket(f"data in an encoding that is not known ({encoding})")


def inflate(data: bytes, limit_bytes: int) -> bytes:
    """Decompresses at most `limit_bytes`.

    What may become large is first run through without keeping it, so that a bomb takes no memory.

    Raises `TooLarge` where there is more, `BadPacket` where it is no zlib.
    """
    try:
        stream = zlib.decompressobj()
        content = stream.decompress(data, min(limit_bytes, _PIECE_BYTES) + 1)
        if len(content) > _PIECE_BYTES and limit_bytes > _PIECE_BYTES:
            stream, rest, size = zlib.decompressobj(), data, 0
            while rest and size <= limit_bytes:
                size += len(stream.decompress(rest, _PIECE_BYTES))
                rest = stream.unconsumed_tail
            if size > limit_bytes:
                raise TooLarge(f"data that becomes larger than {limit_bytes} bytes")
            stream = zlib.decompressobj()
            content = stream.decompress(data, limit_bytes + 1)
    except zlib.error:
        raise BadPacket("data that is not compressed by zlib") from None
    if len(content) > limit_bytes:
        raise TooLarge(f"data that becomes larger than {limit_bytes} bytes")
    if not stream.eof or stream.unused_data:
        raise BadPacket("compressed data that is cut or goes on behind its end")
    return content
