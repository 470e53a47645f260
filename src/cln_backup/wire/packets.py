"""Encodes and decodes packets: protocol 1 of the community's plugin, and its extension.

`docs/wire.md` has the byte tables. A packet is `u8 type, u32 length, payload`, big-endian. The
extension is offered in a packet that a server of the community's plugin reads and ignores
(METADATA, which only servers send there), and used only if the answer says that it is
supported; so a peer that supports protocol 1 only never gets any other part of it.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final, NamedTuple

import msgspec

from cln_backup.formats import v1
from cln_backup.formats.digests import NO_DIGEST, transaction_digest
from cln_backup.formats.encoding import DEFLATED, PLAIN, decoded, inflate
from cln_backup.model.change import Kind
from cln_backup.model.errors import BadChange, BadPacket
from cln_backup.model.position import UNKNOWN, Position

# Protocol 1
CHANGE: Final = 0x01
SNAPSHOT: Final = 0x02
REWIND: Final = 0x03
REQ_METADATA: Final = 0x04
RESTORE: Final = 0x05
ACK: Final = 0x06
NACK: Final = 0x07
METADATA: Final = 0x08
DONE: Final = 0x09
COMPACT: Final = 0x0A
COMPACT_RES: Final = 0x0B
# The extension
APPEND: Final = 0x20
SNAPSHOT_BEGIN: Final = 0x21
SNAPSHOT_DATA: Final = 0x22
SNAPSHOT_END: Final = 0x23
DROP: Final = 0x24
STREAM: Final = 0x25
STREAM_END: Final = 0x26
REFUSED: Final = 0x27
CREATE: Final = 0x28
CLAIM: Final = 0x29
WAIT: Final = 0x2A
START_OVER: Final = 0x2B

PROTOCOL: Final = 1
EXTENDED: Final = 2
CAN_WAIT: Final = 1
"""Of `Standing.features`: the server answers WAIT."""
CAN_STREAM_AFTER: Final = 2
"""Of `Standing.features`: the server accepts a position in STREAM."""
TELLS_PROOF: Final = 4
"""Of `Standing.features`: the server says how far it has replayed the backup."""
CAN_START_OVER: Final = 8
"""Of `Standing.features`: the server accepts START_OVER for this backup."""
IS_SEALED: Final = 16
"""Of `Standing.features`: the backup consists of objects that the server cannot read."""
FEATURES: Final = CAN_WAIT | CAN_STREAM_AFTER | TELLS_PROOF | CAN_START_OVER
"""The additions to the extension that this release supports."""
MAX_PAYLOAD_BYTES: Final = 0xFFFF_FFFF
MAX_CHANGE_BYTES: Final = 1 << 28
"""The largest transaction accepted from a peer, before and after decompression."""
MAX_HELLO_BYTES: Final = 4096
MAX_NODE_ID_BYTES: Final = 128
MAX_REFUSAL_BYTES: Final = 4096
MAX_STATISTICS_BYTES: Final = 1 << 16
CHUNK_BYTES: Final = 1 << 18
"""The largest piece of a snapshot in one SNAPSHOT_DATA packet."""

_HEAD = struct.Struct("!BI")
_VERSION = struct.Struct("!I")
_METADATA = struct.Struct("!IIIQ")
_STANDING = struct.Struct("!BBQQQ32s")
_ADDED = struct.Struct("!IQ32s")
_PROOF = struct.Struct("!IQ")
_APPEND = struct.Struct("!IB32s")
_SNAPSHOT_BEGIN = struct.Struct("!IQ")
_DROP = struct.Struct("!I32s")
_STREAM = struct.Struct("!IIBQ32s")
_AFTER = struct.Struct("!IQ32s")
_REFUSED = struct.Struct("!BIQ")
_WAIT = struct.Struct("!I")

HEAD_BYTES: Final = _HEAD.size
METADATA_BYTES: Final = _METADATA.size
APPEND_BYTES: Final = _APPEND.size

assert HEAD_BYTES == 5
assert METADATA_BYTES == 20
assert _STANDING.size == 58
assert _ADDED.size == 44
assert _PROOF.size == 12
assert APPEND_BYTES == 37
assert _SNAPSHOT_BEGIN.size == 12
assert _DROP.size == 36
assert _STREAM.size == 49
assert _AFTER.size == 44
assert _REFUSED.size == 13

_KINDS: Final = (None, Kind.TRANSACTION, Kind.SNAPSHOT, Kind.RIDER)


class Hello(msgspec.Struct, frozen=True):
    """The greeting of a client that supports the extension, as JSON.

    Attributes:
        role: `read`, `write`, `create` or `takeover`; `objects` for a sealed backup.
        node: name of the node, on a server with several.
        token: the credential, if the server requires one.
        session: a random name of the writing process, by which it resumes a lost connection.
        resume: whether this session has been the writer before.
        deflate: whether the server shall compress the changes that it streams.
        who: the process, for a message to another writer.
    """

    role: str
    node: str = ""
    token: str = ""
    session: str = ""
    resume: bool = False
    deflate: bool = False
    who: str = ""


class Standing(NamedTuple):
    """The state of a server's backup.

    Attributes:
        head: kind of the last change; `None` if empty, or if the server supports protocol 1 only.
        foreign_keys: whether foreign keys are enforced after it.
        size_bytes: of the backup; 0 if unknown.
        changed_at_ms: when the head was stored, since 1970; 0 if unknown.
        epoch: number of writers that the server has seen since it was started.
        digest: of the head; zeros if empty or unknown.
        features: the additions to the extension that the server supports, a bit each.
        changes: see `Position.changes`; 0 if unknown.
        history: see `Position.digest`; zeros if unknown.
        proven_version: the data version up to which the server has replayed the backup; 0 if it
            has not.
        proven_at_ms: when it found that, since 1970; 0 if unknown.
    """

    version: int
    prev_version: int
    version_count: int
    head: Kind | None = None
    foreign_keys: bool = True
    size_bytes: int = 0
    changed_at_ms: int = 0
    epoch: int = 0
    digest: bytes = NO_DIGEST
    features: int = 0
    changes: int = 0
    history: bytes = UNKNOWN
    proven_version: int = 0
    proven_at_ms: int = 0

    @property
    def position(self) -> Position:
        """Where the history ends, as far as the server tells."""
        digest = None if self.history == UNKNOWN else self.history
        return Position(self.version, self.changes or self.version_count, digest)


class StreamStart(NamedTuple):
    """The place from which a server shall stream.

    Attributes:
        version: the first data version.
        skip: how many changes of this very version the client has already.
        head: whether to include the last change.
        offset_bytes: how much the client has already of the snapshot that comes first.
        digest: of the last change that is skipped; zeros if none is.
        after: send only changes after this position, of which all the above then speaks; the
            server must support it (`CAN_STREAM_AFTER`).
    """

    version: int
    skip: int
    head: bool
    offset_bytes: int
    digest: bytes
    after: Position | None = None


class Refusal(NamedTuple):
    """Why a server refused a request.

    Attributes:
        code: exit code of the error's class in `errors`.
        version: the backup's version; for damage, the last good one.
        offset_bytes: for damage, its place.
    """

    code: int
    version: int
    offset_bytes: int
    message: str


def pack_head(packet_type: int, length_bytes: int) -> bytes:
    """The 5 bytes before a payload. Raises `BadChange` if the length is out of range."""
    if length_bytes > MAX_PAYLOAD_BYTES:
        raise BadChange(
            f"Protocol 1 cannot transfer {length_bytes} bytes at once (at most 4 GiB - 1). Nothing "
            "was sent. A server of this project accepts them in pieces."
        )
    return _HEAD.pack(packet_type, length_bytes)


def unpack_head(data: bytes) -> tuple[int, int]:
    """Type and length of the packet that follows."""
    packet_type, length = _HEAD.unpack(data)
    return packet_type, length


def pack_version(version: int) -> bytes:
    """The payload of REWIND, ACK and NACK. Raises `BadChange` for an invalid version."""
    if not 0 <= version <= v1.MAX_VERSION:
        raise BadChange(f"Data version {version} is out of range; nothing was sent.")
    return _VERSION.pack(version)


def unpack_version(payload: bytes) -> int:
    """The version in a REWIND, an ACK or a NACK. Raises `BadPacket`."""
    return int(_fields(_VERSION, payload, exact=True)[0])


def pack_metadata(standing: Standing) -> bytes:
    """METADATA of protocol 1."""
    return _METADATA.pack(PROTOCOL, *standing[:3])


def pack_hello(hello: Hello) -> bytes:
    """METADATA by which a client offers the extension."""
    return _VERSION.pack(EXTENDED) + msgspec.json.encode(hello)


def unpack_hello(payload: bytes) -> Hello:
    """Decodes a client's greeting. Raises `BadPacket`."""
    try:
        if payload[:4] == _VERSION.pack(EXTENDED):
            return msgspec.json.decode(payload[4:], type=Hello)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    raise BadPacket("invalid greeting")


def pack_standing(standing: Standing) -> bytes:
    """METADATA by which a server answers a client that offered the extension."""
    fixed = _STANDING.pack(_KINDS.index(standing.head), standing.foreign_keys, *standing[5:9])
    added = _ADDED.pack(*standing[9:12])
    if standing.proven_at_ms:
        added += _PROOF.pack(*standing[12:])
    return _METADATA.pack(EXTENDED, *standing[:3]) + fixed + added


def unpack_standing(payload: bytes) -> tuple[int, Standing]:
    """A server's protocol, and the state of its backup. Raises `BadPacket`."""
    protocol, version, prev_version, count = _fields(_METADATA, payload, exact=False)
    standing = Standing(version, prev_version, count)
    if protocol == PROTOCOL and len(payload) == METADATA_BYTES:
        return PROTOCOL, standing
    if protocol != EXTENDED:
        raise BadPacket(f"unsupported protocol {protocol}; this program supports 1 and 2")
    kind, foreign_keys, *others = _fields(_STANDING, payload[METADATA_BYTES:], exact=False)
    if kind >= len(_KINDS):
        raise BadPacket(f"a head of unknown kind {kind}")
    added = payload[METADATA_BYTES + _STANDING.size :]
    if len(added) >= _ADDED.size:  # a server of release 0.2 does not send it
        others += _ADDED.unpack_from(added)
    if len(added) >= _ADDED.size + _PROOF.size:  # only if there is a proof
        others += _PROOF.unpack_from(added, _ADDED.size)
    return EXTENDED, Standing(*standing[:3], _KINDS[kind], bool(foreign_keys), *others)


def pack_change(version: int, payload: bytes) -> bytes:
    """CHANGE of protocol 1, for a transaction encoded by `v1.pack_transaction`."""
    return pack_version(version) + zlib.compress(payload)


def unpack_change(
    payload: bytes, limit_bytes: int = MAX_CHANGE_BYTES
) -> tuple[int, tuple[str, ...]]:
    """Version and statements of a CHANGE. Raises `BadPacket`, `TooLarge`."""
    version = _fields(_VERSION, payload, exact=False)[0]
    return version, v1.unpack_transaction(inflate(payload[4:], limit_bytes))


def pack_append(version: int, payload: bytes, digest: bytes, *, deflate: bool) -> bytes:
    """APPEND: a transaction encoded by `v1.pack_transaction`, with its digest."""
    pack_version(version)
    if deflate:
        # Level 1 saves three quarters of what level 6 does, in a quarter of the time.
        return _APPEND.pack(version, DEFLATED, digest) + zlib.compress(payload, 1)
    return _APPEND.pack(version, PLAIN, digest) + payload


def unpack_append(
    payload: bytes, limit_bytes: int = MAX_CHANGE_BYTES
) -> tuple[int, tuple[str, ...], bytes]:
    """Version, statements and digest of an APPEND.

    Raises `BadPacket`, also for a wrong digest, and `TooLarge`.
    """
    version, encoding, digest = _fields(_APPEND, payload, exact=False)
    content = decoded(encoding, payload[APPEND_BYTES:], limit_bytes)
    if transaction_digest(version, content) != digest:
        raise BadPacket(f"a change for version {version} whose digest does not match")
    return version, v1.unpack_transaction(content), digest


def pack_snapshot_begin(version: int, size_bytes: int) -> bytes:
    """SNAPSHOT_BEGIN: a snapshot of that size follows in pieces."""
    pack_version(version)
    return _SNAPSHOT_BEGIN.pack(version, size_bytes)


def unpack_snapshot_begin(payload: bytes) -> tuple[int, int]:
    """Version and size of the snapshot that follows. Raises `BadPacket`."""
    version, size = _fields(_SNAPSHOT_BEGIN, payload, exact=True)
    return version, size


def pack_piece(piece: bytes, *, deflate: bool) -> bytes:
    """SNAPSHOT_DATA: at most `CHUNK_BYTES` of a snapshot."""
    assert len(piece) <= CHUNK_BYTES
    if deflate:
        return bytes([DEFLATED]) + zlib.compress(piece, 1)
    return bytes([PLAIN]) + piece


def unpack_piece(payload: bytes) -> bytes:
    """The bytes of a snapshot in a SNAPSHOT_DATA. Raises `BadPacket`."""
    if not payload:
        raise BadPacket("an empty piece of a snapshot")
    return decoded(payload[0], payload[1:], CHUNK_BYTES)


def pack_drop(to_version: int, digest: bytes) -> bytes:
    """DROP: go back to a version, by dropping the head that has this digest."""
    return _DROP.pack(to_version, digest)


def unpack_drop(payload: bytes) -> tuple[int, bytes]:
    """The version to go back to, and the digest of the head to drop. Raises `BadPacket`."""
    to_version, digest = _fields(_DROP, payload, exact=True)
    return to_version, digest


def pack_claim(node_id: str) -> bytes:
    """CLAIM: names the node that the backup belongs to."""
    return node_id.encode("ascii")


def unpack_claim(payload: bytes) -> str:
    """The node's id, in hex. Raises `BadPacket`."""
    if len(payload) > MAX_NODE_ID_BYTES or not payload.isalnum():
        raise BadPacket("invalid node id")
    return payload.decode("ascii")


def pack_stream_start(start: StreamStart) -> bytes:
    """STREAM: the place to start from, and whether to include the head."""
    *fields, after = start
    packed = _STREAM.pack(*fields)
    if after is None:
        return packed
    return packed + _AFTER.pack(after.version, after.changes, after.digest or UNKNOWN)


def unpack_stream_start(payload: bytes) -> StreamStart:
    """The place from which a client wants changes. Raises `BadPacket`."""
    fields = payload[: _STREAM.size]
    after = None
    if len(payload) != _STREAM.size:  # a client of release 0.2 has no position
        at, changes, history = _fields(_AFTER, payload[_STREAM.size :], exact=True)
        after = Position(at, changes, None if history == UNKNOWN else history)
    version, skip, head, offset, digest = _fields(_STREAM, fields, exact=True)
    return StreamStart(version, skip, bool(head), offset, digest, after)


def pack_wait(limit_s: float) -> bytes:
    """WAIT: how long to wait for a change of the state at most; at least a millisecond."""
    return _WAIT.pack(max(1, min(int(limit_s * 1000), 0xFFFF_FFFF)))


def unpack_wait(payload: bytes) -> float:
    """The maximum wait that a client requests, in seconds. Raises `BadPacket`."""
    return float(_fields(_WAIT, payload, exact=True)[0]) / 1000


def pack_refusal(refusal: Refusal) -> bytes:
    """REFUSED: why a request was refused."""
    text = refusal.message.encode("utf-8", "replace")[: MAX_REFUSAL_BYTES - _REFUSED.size]
    return _REFUSED.pack(refusal.code, refusal.version, refusal.offset_bytes) + text


def unpack_refusal(payload: bytes) -> Refusal:
    """Why a server refused a request; the text is safe for a terminal. Raises `BadPacket`."""
    code, version, offset = _fields(_REFUSED, payload, exact=False)
    text = payload[_REFUSED.size :].decode("utf-8", "replace")
    return Refusal(code, version, offset, "".join(c if c.isprintable() else " " for c in text))


def _fields(form: struct.Struct, payload: bytes, *, exact: bool) -> tuple[Any, ...]:
    if len(payload) < form.size or (exact and len(payload) != form.size):
        raise BadPacket(f"a packet of {len(payload)} bytes instead of {form.size}")
    return form.unpack_from(payload)
