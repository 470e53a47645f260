"""Changes into the records of one file of format 2, and back.

All compressed records of a file are one zstd stream, flushed at the end of each: the history that
makes the next ones small is shared, and what was written can be read without what comes later.
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
"""zstd makes no more of a byte: the shortest block has 4 bytes and stands for 128 KiB."""

_RAW = struct.Struct("!I")
RAW_BYTES: Final = _RAW.size


class Record(NamedTuple):
    """One record, unsealed and not yet decompressed.

    Attributes:
        payload: what follows type, version and time in the body.
        start: where it starts.
        end_bytes: where the next one starts.
        seal: its own.
        stored_ms: when it was stored, since 1970; 0 where that is not known.
    """

    type: v2.Type
    version: int
    payload: bytes
    start: v2.Position
    end_bytes: int
    seal: bytes
    stored_ms: int


class Encoder:
    """Makes the records of one file, in order.

    Attributes:
        seal: of what was made last.
    """

    def __init__(self, sealer: Sealer, seal: bytes, *, timed: bool = False) -> None:
        """`timed` where the file's changes have times."""
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
        """The next record. After a `BadChange` the encoder is of no more use."""
        body = v2.pack_body(record_type, version)
        if self._timed and record_type in v2.CHANGES:
            body += v2.pack_time(stored_ms)
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
        seal: of what was unsealed last.
    """

    def __init__(self, sealer: Sealer, seal: bytes, *, timed: bool = False) -> None:
        """`timed` where the file's changes have times."""
        self._timed = timed
        self._unseal = sealer.unseal
        self._index = 0
        self.seal = seal

    def decode(self, window: bytes, segment: int, offset_bytes: int) -> list[Record]:
        """The records that stand at the start of a window, up to where none stands that holds.

        The window starts where the last record ended; `segment` and `offset_bytes` say where.

        Raises:
            Malformed: the first one holds, and is nothing that this format has.
        """
        found: list[Record] = []
        at = 0
        while (length := v2.unpack_head(window, at)) is not None:
            body_at = at + v2.HEAD_BYTES
            foot_at = body_at + length + v2.SEAL_BYTES
            if v2.unpack_foot(window, foot_at) != length:
                break
            sealed = window[body_at:foot_at]
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
            start = v2.Position(segment, offset_bytes + at, self.seal)
            self._index += 1
            self.seal = sealed[-v2.SEAL_BYTES :]
            at = foot_at + v2.FOOT_BYTES
            payload = body[v2.BODY_BYTES + (v2.TIME_BYTES if timed else 0) :]
            end = offset_bytes + at
            found.append(Record(record_type, version, payload, start, end, self.seal, stored_ms))
        return found


class _Pending:
    """Compressed bytes that were not taken yet: what the decompressor reads from.

    An object of its own, because zstandard's readers are not seen by Python's garbage collector: a
    reader that led back to the one who holds it would be kept for ever, with its window.
    """

    def __init__(self) -> None:
        self._data = b""

    def add(self, data: bytes) -> None:
        self._data += data

    def read(self, size_bytes: int) -> bytes:
        data, self._data = self._data[:size_bytes], self._data[size_bytes:]
        return data


class Inflater:
    """Decompresses the records of one file; it must be given each compressed one, in order."""

    def __init__(self) -> None:
        from zstandard import ZstdDecompressor, ZstdError

        self._pending = _Pending()
        self._error = ZstdError
        decompressor = ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        source = cast("IO[bytes]", self._pending)
        self._reader = decompressor.stream_reader(source, read_size=1 << 17)

    def inflate(self, payload: bytes) -> bytes:
        """The content of a record. Memory grows with what is there, not with what it claims.

        Raises:
            Malformed: the record is not what its length says.
            MemoryError: which says nothing about the record.
        """
        if len(payload) < RAW_BYTES:
            raise v2.Malformed("a compressed record without its length")
        (wanted,) = _RAW.unpack_from(payload)
        packed = payload[RAW_BYTES:]
        if wanted > min(v2.MAX_TRANSACTION_BYTES, len(packed) * _MAX_RATIO):
            raise v2.Malformed(f"a record that claims to hold {wanted} bytes")
        self._pending.add(packed)
        try:
            # In one go: asked again, the reader takes the end of its input for the end of all,
            # also where it still holds a part of the last block.
            content = self._reader.read(wanted) if wanted else b""
        except self._error as error:
            if "not enough memory" in str(error):  # zstandard has one type for all that it says
                raise MemoryError(str(error)) from None
            raise v2.Malformed("a record that cannot be decompressed") from None
        if len(content) != wanted:
            raise v2.Malformed("a record that is shorter than it says")
        return content


def pack_transaction(transaction: Sequence[str]) -> bytes:
    """As `v1.pack_transaction`, and also refuses what is larger than a record holds."""
    content = v1.pack_transaction(transaction)
    if len(content) > v2.MAX_TRANSACTION_BYTES:
        raise BadChange(
            f"A transaction of {len(content)} bytes is too large for the backup (at most 1 GiB); "
            "nothing was written."
        )
    return content
