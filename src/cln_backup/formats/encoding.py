"""Payloads on the wire, plain or compressed, with limits on their decompressed size."""

from __future__ import annotations

import zlib
from typing import Final

from cln_backup.model.errors import BadPacket

PLAIN: Final = 0
DEFLATED: Final = 1

_PIECE_BYTES = 1 << 18


class TooLarge(BadPacket):
    """Data that is larger than the limit after decompression."""


def decoded(encoding: int, data: bytes, limit_bytes: int) -> bytes:
    """Decodes data with an encoding of the wire. Raises `TooLarge`, `BadPacket`."""
    if encoding == PLAIN:
        if len(data) > limit_bytes:
            raise TooLarge(f"{len(data)} bytes; the limit is {limit_bytes}")
        return data
    if encoding == DEFLATED:
        return inflate(data, limit_bytes)
    raise BadPacket(f"unknown encoding {encoding}")


def inflate(data: bytes, limit_bytes: int) -> bytes:
    """Decompresses at most `limit_bytes`.

    Data that may become large is first decompressed without keeping it, so that a zip bomb takes
    no memory.

    Raises `TooLarge` if there is more, `BadPacket` if it is not valid zlib data.
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
                raise TooLarge(f"data larger than {limit_bytes} bytes after decompression")
            stream = zlib.decompressobj()
            content = stream.decompress(data, limit_bytes + 1)
    except zlib.error:
        raise BadPacket("not valid zlib data") from None
    if len(content) > limit_bytes:
        raise TooLarge(f"data larger than {limit_bytes} bytes after decompression")
    if not stream.eof or stream.unused_data:
        raise BadPacket("compressed data that is truncated or has trailing bytes")
    return content
