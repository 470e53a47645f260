"""Format 2: files of sealed records. `docs/format.md` has the byte tables and the threat model.

Every file starts with a header of one sector that says what the file is, followed by records. The
seal of each record covers the record and the seal before it, so that the last one verifies all of
them; the first one covers the header. This module is about the bytes alone: `seals` makes and
checks seals, `v2_stream` encodes changes as records and decodes them.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from cln_backup.model.change import Kind
from cln_backup.model.errors import BadChange
from cln_backup.model.position import UNKNOWN

MAGIC: Final = b"CLNBKP2\n"
HEADER_BYTES: Final = 512
SECTOR_BYTES: Final = 512
ID_BYTES: Final = 16
SALT_BYTES: Final = 32
SEAL_BYTES: Final = 16
DIGEST_BYTES: Final = 32

PLAIN: Final = 0
AES_256_GCM: Final = 1

MARK: Final = 0xC3
END_MARK: Final = 0x3C
"""A single flipped bit neither makes one of them from zeros, nor makes one of them zero."""

MAX_TRANSACTION_BYTES: Final = 1 << 30
CHUNK_BYTES: Final = 1 << 20
MAX_BODY_BYTES: Final = MAX_TRANSACTION_BYTES + (1 << 24)
MAX_VERSION: Final = (1 << 64) - 1
MAX_TIME_MS: Final = (1 << 48) - 1

_OPEN = struct.Struct("!8sBB6x16sQQQ32s")
_HEAD = struct.Struct("!BI")
_FOOT = struct.Struct("!IB")
_BODY = struct.Struct("!BQ")
_TIMED_BODY = struct.Struct("!BQHI")
_TIME = struct.Struct("!HI")
_MARK = struct.Struct("!BBQQQ16s")
_LOG = struct.Struct(f"!QQ16s32sQB{_MARK.size}s{_MARK.size}sQQQ32s32s32s32s")
_BASE = struct.Struct("!QBBBQQQ16sQQ32s")
_SNAPSHOT = struct.Struct("!QQ32s")
_DROPPED = struct.Struct("!QQBQ")
_REFERENCE = struct.Struct("!QQ16s")

OPEN_BYTES: Final = _OPEN.size
STATE_BYTES: Final = HEADER_BYTES - OPEN_BYTES - SEAL_BYTES
HEAD_BYTES: Final = _HEAD.size
FOOT_BYTES: Final = _FOOT.size
FRAME_BYTES: Final = HEAD_BYTES + SEAL_BYTES + FOOT_BYTES
BODY_BYTES: Final = _BODY.size
TIME_BYTES: Final = _TIME.size

assert OPEN_BYTES == 88
assert STATE_BYTES == 408
assert FRAME_BYTES == 26
assert BODY_BYTES == 9
assert TIME_BYTES == 6
assert _MARK.size == 42
assert _LOG.size == 309
assert _BASE.size == 99
assert _SNAPSHOT.size == 48
assert _DROPPED.size == 25
assert _REFERENCE.size == 32


class FileKind(IntEnum):
    """The kind of a file."""

    LOG = 1  # its records have no times; no longer written, but always read
    BASE = 2
    SNAPSHOT = 3
    DROPPED = 4
    TIMED_LOG = 5


class Type(IntEnum):
    """The type of a record."""

    TRANSACTION = 1
    RIDER = 2  # leaves foreign keys enforced
    RIDER_WITHOUT_KEYS = 3  # leaves them not enforced
    SNAPSHOT = 4
    DROP = 5
    CHUNK = 6
    END = 7


COMPRESSED: Final = frozenset((Type.TRANSACTION, Type.RIDER, Type.RIDER_WITHOUT_KEYS, Type.CHUNK))
CHANGES: Final = frozenset((Type.TRANSACTION, Type.RIDER, Type.RIDER_WITHOUT_KEYS, Type.SNAPSHOT))
"""The records that have a time, in files whose records have times."""


_TYPES: Final = {int(known): known for known in Type}


class Malformed(Exception):
    """Invalid bytes, which no writer of this format makes; the reader adds their place."""


class Open(NamedTuple):
    """The part of a header that is never encrypted.

    Attributes:
        number: of the segment, the generation or the snapshot; the version of a dropped change.
        epoch: the number of writers that had been started when the file was made.
        created_ms: since 1970.
        salt: the file's key is derived from it; zeros without encryption.
    """

    kind: FileKind
    cipher: int
    backup_id: bytes
    number: int
    epoch: int
    created_ms: int
    salt: bytes


class LogOffset(NamedTuple):
    """A place between two records of the log.

    Attributes:
        segment: number of the segment; 0 means "in the base, not in the log".
        offset_bytes: in its file; 0 for the start of the first segment from this number on.
        seal: of the record before it.
    """

    segment: int
    offset_bytes: int
    seal: bytes


NOWHERE: Final = LogOffset(0, 0, bytes(SEAL_BYTES))


class Mark(NamedTuple):
    """A change as the next writer needs to know it, and where its record starts.

    Attributes:
        stored_ms: when it was stored, since 1970; 0 if unknown.
        prev_digest, digest: of the history before it, and up to it.
    """

    kind: Kind
    foreign_keys: bool
    version: int
    at: LogOffset
    stored_ms: int
    prev_digest: bytes
    digest: bytes


class LogState(NamedTuple):
    """The header of a segment: everything that its writer knew when it began.

    Attributes:
        prev_segment, prev_end_bytes, prev_seal: where the previous segment ends; 0 in the first.
        prev_digest: SHA-256 of the previous segment, up to its end.
        ordinal: number of changes that were ever appended and not dropped.
        may_rewind: whether the head may be dropped.
        head, before: the last two changes.
        capacity_bytes: length of the file when it was made, all of it zeros on stable storage; 0
            if unknown. Until another segment follows, the file is never shorter.
    """

    prev_segment: int
    prev_end_bytes: int
    prev_seal: bytes
    prev_digest: bytes
    ordinal: int
    may_rewind: bool
    head: Mark | None
    before: Mark | None
    capacity_bytes: int


class BaseState(NamedTuple):
    """The header of a base: where a generation of the history starts.

    Attributes:
        version: data version of the snapshot.
        snapshot: whether the base has one; otherwise the log starts from nothing.
        foreign_keys: whether they are enforced after it.
        changes: number of changes that the base replaces: the snapshot, and a rider that switches
            foreign keys off.
        size_bytes: of the database file.
        start: where the log continues.
        ordinal: as in `LogState`, at that place.
        stored_ms: when the last change that the base replaces was stored; 0 if unknown.
        digest: of the history up to that change.
    """

    version: int
    snapshot: bool
    foreign_keys: bool
    changes: int
    size_bytes: int
    start: LogOffset
    ordinal: int
    stored_ms: int
    digest: bytes


class SnapshotState(NamedTuple):
    """The header of a snapshot in a file of its own.

    Attributes:
        size_bytes: of the database file.
        digest: of its content.
    """

    version: int
    size_bytes: int
    digest: bytes


class DroppedState(NamedTuple):
    """The header of a dropped change in a file of its own.

    Attributes:
        size_bytes: of its statements as they are in a record, or of the database file.
        snapshot: which of the two it is.
        stored_ms: when it was stored; 0 if unknown.
    """

    version: int
    size_bytes: int
    snapshot: bool
    stored_ms: int


class Reference(NamedTuple):
    """A record's reference to a snapshot in a file of its own.

    Attributes:
        number: of the snapshot's file.
        size_bytes: of the database file.
        seal: the last one in the snapshot's file, so that the log verifies all of it.
    """

    number: int
    size_bytes: int
    seal: bytes


def pack_open(header: Open) -> bytes:
    """The first 88 bytes of a file."""
    return _OPEN.pack(MAGIC, *header)


def unpack_open(data: bytes) -> Open:
    """The open part of a header. Raises `Malformed`."""
    magic, kind, cipher, *rest = _OPEN.unpack_from(data)
    if magic != MAGIC:
        raise Malformed("not a file of format 2")
    if kind not in FileKind.__members__.values() or cipher not in (PLAIN, AES_256_GCM):
        raise Malformed("a header of an unknown kind")
    if any(data[10:16]):
        raise Malformed("a header whose reserved bytes are not zero")
    return Open(FileKind(kind), cipher, *rest)


def pack_log_state(state: LogState) -> bytes:
    """The state in a segment's header, padded with zeros."""
    *fields, head, before, capacity = state
    times = [0 if mark is None else mark.stored_ms for mark in (head, before)]
    marks = _pack_mark(head), _pack_mark(before)
    digests = _digests_of(head), _digests_of(before)
    packed = _LOG.pack(*fields, *marks, capacity, *times, *digests[0], *digests[1])
    return packed.ljust(STATE_BYTES, b"\x00")


def unpack_log_state(data: bytes) -> LogState:
    """Decodes a segment's state. Raises `Malformed`."""
    *fields, head, before, capacity, head_ms, before_ms, a, b, c, d = _LOG.unpack_from(data)
    segment, end, seal, digest, ordinal, may_rewind = fields
    marks = _mark(head, head_ms, a, b), _mark(before, before_ms, c, d)
    return LogState(segment, end, seal, digest, ordinal, bool(may_rewind), *marks, capacity)


def pack_base_state(state: BaseState) -> bytes:
    """The state in a base's header, padded with zeros."""
    *fields, start, ordinal, stored_ms, digest = state
    packed = _BASE.pack(*fields, *start, ordinal, stored_ms, digest)
    return packed.ljust(STATE_BYTES, b"\x00")


def unpack_base_state(data: bytes) -> BaseState:
    """Decodes a base's state."""
    version, snapshot, keys, count, size, *start, ordinal, at_ms, digest = _BASE.unpack_from(data)
    at = LogOffset(*start)
    return BaseState(version, bool(snapshot), bool(keys), count, size, at, ordinal, at_ms, digest)


def pack_snapshot_state(state: SnapshotState) -> bytes:
    """The state in a snapshot's header, padded with zeros."""
    return _SNAPSHOT.pack(*state).ljust(STATE_BYTES, b"\x00")


def unpack_snapshot_state(data: bytes) -> SnapshotState:
    """Decodes a snapshot's state."""
    return SnapshotState(*_SNAPSHOT.unpack_from(data))


def pack_dropped_state(state: DroppedState) -> bytes:
    """The state in the header of a dropped change, padded with zeros."""
    return _DROPPED.pack(*state).ljust(STATE_BYTES, b"\x00")


def unpack_dropped_state(data: bytes) -> DroppedState:
    """Decodes the state of a dropped change."""
    version, size, snapshot, stored_ms = _DROPPED.unpack_from(data)
    return DroppedState(version, size, bool(snapshot), stored_ms)


_KINDS: Final = (Kind.TRANSACTION, Kind.RIDER, Kind.SNAPSHOT)


def _pack_mark(mark: Mark | None) -> bytes:
    if mark is None:
        return bytes(_MARK.size)
    return _MARK.pack(_KINDS.index(mark.kind) + 1, mark.foreign_keys, mark.version, *mark.at)


def _digests_of(mark: Mark | None) -> tuple[bytes, bytes]:
    return (UNKNOWN, UNKNOWN) if mark is None else (mark.prev_digest, mark.digest)


def _mark(data: bytes, stored_ms: int, prev_digest: bytes, digest: bytes) -> Mark | None:
    kind, foreign_keys, version, *at = _MARK.unpack(data)
    if kind == 0:
        return None
    if kind > len(_KINDS):
        raise Malformed(f"a header that names a change of unknown kind {kind}")
    start = LogOffset(*at)
    return Mark(
        _KINDS[kind - 1], bool(foreign_keys), version, start, stored_ms, prev_digest, digest
    )


def pack_head(body_bytes: int) -> bytes:
    """The bytes before a body. Raises `BadChange` if the body is too large."""
    if body_bytes > MAX_BODY_BYTES:
        raise BadChange(
            f"A change of {body_bytes} bytes is too large for the backup; nothing was written."
        )
    return _HEAD.pack(MARK, body_bytes)


def unpack_head(data: bytes, at: int = 0) -> int | None:
    """The length of the body, or `None` if no record starts there."""
    if len(data) < at + HEAD_BYTES:
        return None
    mark, length = _HEAD.unpack_from(data, at)
    good = mark == MARK and BODY_BYTES <= length <= MAX_BODY_BYTES
    return length if good else None


def pack_foot(body_bytes: int) -> bytes:
    """The bytes after a seal."""
    return _FOOT.pack(body_bytes, END_MARK)


def unpack_foot(data: bytes, at: int = 0) -> int | None:
    """The length of the body as the end of a record has it, or `None` if no record ends there."""
    if len(data) < at + FOOT_BYTES:
        return None
    length, mark = _FOOT.unpack_from(data, at)
    return length if mark == END_MARK and BODY_BYTES <= length <= MAX_BODY_BYTES else None


def pack_body(record_type: Type, version: int, stored_ms: int | None = None) -> bytes:
    """The start of a body, before sealing; with a time for a change if the file's records have it.

    Raises `BadChange` if the version is out of range.
    """
    if not 0 <= version <= MAX_VERSION:
        raise BadChange(f"The backup cannot store data version {version}; nothing was written.")
    if stored_ms is None:
        return _BODY.pack(record_type, version)
    at = min(max(0, stored_ms), MAX_TIME_MS)
    return _TIMED_BODY.pack(record_type, version, at >> 32, at & 0xFFFF_FFFF)


def unpack_time(body: bytes | memoryview) -> int:
    """The time of a change, in milliseconds since 1970. Raises `Malformed`."""
    if len(body) < BODY_BYTES + TIME_BYTES:
        raise Malformed("a change without its time")
    high, low = _TIME.unpack_from(body, BODY_BYTES)
    return int(high) << 32 | int(low)


def unpack_body(body: bytes | memoryview) -> tuple[Type, int]:
    """Decodes the start of a body. Raises `Malformed`."""
    record_type, version = _BODY.unpack_from(body)
    known = _TYPES.get(record_type)
    if known is None:
        raise Malformed(f"a record of unknown type {record_type}")
    return known, version


def pack_reference(reference: Reference) -> bytes:
    """The rest of the body of a `SNAPSHOT` record."""
    return _REFERENCE.pack(*reference)


def unpack_reference(payload: bytes | memoryview) -> Reference:
    """Decodes the rest of the body of a `SNAPSHOT` record. Raises `Malformed`."""
    if len(payload) != _REFERENCE.size:
        raise Malformed("a SNAPSHOT record of the wrong length")
    return Reference(*_REFERENCE.unpack(payload))
