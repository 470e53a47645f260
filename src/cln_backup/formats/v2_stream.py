"""Encodes changes as the records of one file of format 2, and decodes them.

All compressed records of a file are one zstd stream, flushed after each record: later records
share the history, and each can be read without those after it.
"""

from __future__ import annotations

import struct
from typing import IO, TYPE_CHECKING, Final, NamedTuple, cast

from cln_backup.formats import v1, v2
from cln_backup.model.errors import BadChange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cln_backup.formats.seals import Sealer

_LEVEL: Final = 1  # on this text higher levels come out larger: docs/design.md has the figures
_WINDOW_LOG: Final = 19
_MAX_WINDOW_BYTES: Final = 1 << 23
_MAX_RATIO: Final = 1 << 15
"""zstd expands a byte to no more: the shortest block has 4 bytes and decompresses to 128 KiB."""

_READ_BYTES: Final = 1 << 21
"""More than a piece of a snapshot has, so that it is decompressed as it is, without a copy."""

_LARGE_BYTES: Final = 1 << 16

_RAW = struct.Struct("!I")
RAW_BYTES: Final = _RAW.size


class Record(NamedTuple):
    """One record, unsealed and not yet decompressed.

    Attributes:
        payload: the rest of the body after type, version and time; a large one may be a view.
        start: where it starts.
        end_bytes: where the next one starts.
        seal: its own.
        stored_ms: when it was stored, since 1970; 0 if unknown.
    """

    type: v2.Type
    version: int
    payload: bytes | memoryview
    start: v2.LogOffset
    end_bytes: int
    seal: bytes
    stored_ms: int


class Encoder:
    """Makes the records of one file, in order.

    Attributes:
        seal: of the last record made.
    """

    def __init__(self, sealer: Sealer, seal: bytes, *, timed: bool = False) -> None:
        """`timed` if the file's changes have times."""
        from zstandard import COMPRESSOBJ_FLUSH_BLOCK, ZstdCompressionParameters, ZstdCompressor

        parameters = ZstdCompressionParameters.from_level(
            _LEVEL, window_log=_WINDOW_LOG, write_content_size=False
        )
        self._stream = ZstdCompressor(compression_params=parameters).compressobj()
        self._flush = COMPRESSOBJ_FLUSH_BLOCK
        self._sealer = sealer
        self._timed = timed
        self._index = 0
        self.seal = seal

    def encode(
        self, record_type: v2.Type, version: int, content: bytes, stored_ms: int = 0
    ) -> bytes:
        """The next record. After a `BadChange` the encoder cannot be used any more."""
        timed = self._timed and record_type in v2.CHANGES
        body = v2.pack_body(record_type, version, stored_ms if timed else None)
        if record_type in v2.COMPRESSED:
            packed = self._stream.compress(content) + self._stream.flush(self._flush)
            body += _RAW.pack(len(content)) + packed
        else:
            body += content
        head = v2.pack_head(len(body))
        self._index += 1
        sealed = self._sealer.seal(self._index, self.seal + head, body)
        self.seal = sealed[-v2.SEAL_BYTES :]
        return head + sealed + v2.pack_foot(len(body))


class Decoder:
    """Unseals the records of one file, in order.

    Attributes:
        seal: of the last record unsealed.
    """

    def __init__(self, sealer: Sealer, seal: bytes, *, timed: bool = False) -> None:
        """`timed` if the file's changes have times."""
        self._timed = timed
        self._unseal = sealer.unseal
        self._index = 0
        self.seal = seal

    def decode(self, window: bytes, segment: int, offset_bytes: int) -> list[Record]:
        """The records at the start of a window, up to the first that is incomplete or invalid.

        The window starts where the last record ended, at `segment` and `offset_bytes`.

        Raises:
            Malformed: the seal of the first one is valid, but its contents are not.
        """
        found: list[Record] = []
        bytes_of = memoryview(window)  # a large record is not copied more often than necessary
        at = 0
        while (length := v2.unpack_head(window, at)) is not None:
            body_at = at + v2.HEAD_BYTES
            foot_at = body_at + length + v2.SEAL_BYTES
            if v2.unpack_foot(window, foot_at) != length:
                break
            sealed = bytes_of[body_at:foot_at]
            body = self._unseal(self._index + 1, self.seal + window[at:body_at], sealed)
            if body is None:
                break
            try:
                record_type, version = v2.unpack_body(body)
                timed = self._timed and record_type in v2.CHANGES
                stored_ms = v2.unpack_time(body) if timed else 0
            except v2.Malformed:
                if found:
                    break
                raise
            start = v2.LogOffset(segment, offset_bytes + at, self.seal)
            self._index += 1
            self.seal = bytes(sealed[-v2.SEAL_BYTES :])
            at = foot_at + v2.FOOT_BYTES
            rest = memoryview(body)[v2.BODY_BYTES + (v2.TIME_BYTES if timed else 0) :]
            payload = rest.tobytes() if length < _LARGE_BYTES else rest
            end = offset_bytes + at
            found.append(Record(record_type, version, payload, start, end, self.seal, stored_ms))
        return found


class _Pending:
    """The decompressor's input: compressed bytes that it has not read yet.

    An object of its own, because Python's garbage collector does not see through zstandard's
    readers: a reader that referred back to its owner would be kept forever, with its window.
    """

    def __init__(self) -> None:
        self._data: bytes | memoryview = b""

    def add(self, data: bytes | memoryview) -> None:
        self._data = b"".join((self._data, data)) if self._data else data

    def read(self, size_bytes: int) -> bytes | memoryview:
        data = self._data
        if len(data) <= size_bytes:
            self._data = b""  # an empty view would keep the whole buffer
            return data
        self._data = data[size_bytes:]
        return data[:size_bytes]


class Inflater:
    """Decompresses the records of one file; it must get each compressed one, in order."""

    def __init__(self) -> None:
        from zstandard import ZstdDecompressor, ZstdError

        self._pending = _Pending()
        self._error = ZstdError
        decompressor = ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        source = cast("IO[bytes]", self._pending)
        self._reader = decompressor.stream_reader(source, read_size=_READ_BYTES)

    def inflate(self, payload: bytes | memoryview) -> bytes:
        """The content of a record. Memory grows with the bytes present, not with the stated length.

        Raises:
            Malformed: the record does not match its length.
            MemoryError: this machine is out of memory; the record may be valid.
        """
        if len(payload) < RAW_BYTES:
            raise v2.Malformed("a compressed record without its length")
        (wanted,) = _RAW.unpack_from(payload)
        packed = payload[RAW_BYTES:]
        if wanted > min(v2.MAX_TRANSACTION_BYTES, len(packed) * _MAX_RATIO):
            raise v2.Malformed(f"a record with an impossible length of {wanted} bytes")
        self._pending.add(packed)
        try:
            # In one call: in a second one, the reader takes the end of its input for the end of the
            # stream, even if it still has a part of the last block.
            content = self._reader.read(wanted) if wanted else b""
        except self._error as error:
            if "not enough memory" in str(error):  # zstandard has one type for all its errors
                raise MemoryError(str(error)) from None
            raise v2.Malformed("a record that cannot be decompressed") from None
        if len(content) != wanted:
            raise v2.Malformed("a record that is shorter than its length says")
        return content


def pack_transaction(transaction: Sequence[str]) -> bytes:
    """As `v1.pack_transaction`, but also refuses more than a record can store."""
    content = v1.pack_transaction(transaction)
    if len(content) > v2.MAX_TRANSACTION_BYTES:
        raise BadChange(
            f"A transaction of {len(content)} bytes is too large for the backup (at most 1 GiB); "
            "nothing was written."
        )
    return content
