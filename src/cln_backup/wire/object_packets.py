"""Encodes and decodes the packets of a sealed backup: five requests about objects.

`docs/wire.md` has the byte tables. A client offers them with the role `objects` in its greeting.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from cln_backup.model.errors import BadPacket
from cln_backup.storage.bucket import MAX_KEY_CHARACTERS, Found, Listed, is_directory, is_key

PUT: Final = 0x2C
GET: Final = 0x2D
LIST: Final = 0x2E
DELETE: Final = 0x2F
STORED: Final = 0x30
OBJECT: Final = 0x31
LISTING: Final = 0x32

ROLE: Final = "objects"
"""Of a greeting: the client sends these packets only."""

MAX_CONTENT_BYTES: Final = (4 << 20) + (1 << 16)
"""The largest object, and the largest part of one in an answer."""

MAX_LISTED: Final = 1000
"""Keys in one LISTING or DELETE."""

_KEY = struct.Struct("!H")
_GET = struct.Struct("!QI")
_STORED = struct.Struct("!BQQ")
_OBJECT = struct.Struct("!BQd")
_LISTED = struct.Struct("!HQd")

MAX_PUT_BYTES: Final = _KEY.size + MAX_KEY_CHARACTERS + MAX_CONTENT_BYTES
MAX_GET_BYTES: Final = _GET.size + MAX_KEY_CHARACTERS
MAX_LIST_BYTES: Final = 2 * (_KEY.size + MAX_KEY_CHARACTERS)
MAX_DELETE_BYTES: Final = MAX_LISTED * (_KEY.size + MAX_KEY_CHARACTERS)
MAX_OBJECT_BYTES: Final = _OBJECT.size + MAX_CONTENT_BYTES
MAX_LISTING_BYTES: Final = 1 + MAX_LISTED * (_LISTED.size + MAX_KEY_CHARACTERS)


class Stored(NamedTuple):
    """The answer to PUT and DELETE.

    Attributes:
        is_ours: whether the object with the key has this content; for DELETE always true.
        used_bytes: of the node's space on the server.
        quota_bytes: the most that it may use; 0 if there is no limit.
    """

    is_ours: bool
    used_bytes: int
    quota_bytes: int


def pack_put(key: str, content: bytes) -> bytes:
    """PUT: store an object if there is none with the key."""
    return _packed_key(key) + content


def unpack_put(payload: bytes) -> tuple[str, bytes]:
    """The key and the content. Raises `BadPacket`."""
    key, end = _key_at(payload, 0)
    return key, payload[end:]


def pack_get(key: str, offset_bytes: int, length_bytes: int) -> bytes:
    """GET: a range of an object, and its metadata."""
    return _GET.pack(offset_bytes, min(length_bytes, MAX_CONTENT_BYTES)) + key.encode("ascii")


def unpack_get(payload: bytes) -> tuple[str, int, int]:
    """The key, and the range. Raises `BadPacket`."""
    if len(payload) < _GET.size:
        raise BadPacket("a request for an object that is cut off")
    offset_bytes, length_bytes = _GET.unpack_from(payload)
    if length_bytes > MAX_CONTENT_BYTES or offset_bytes >= 1 << 63:
        raise BadPacket("a request for too much of an object")
    return _checked(payload[_GET.size :]), offset_bytes, length_bytes


def pack_list(prefix: str, after: str) -> bytes:
    """LIST: the objects below a directory, after a key of an earlier LISTING."""
    return _packed_key(prefix) + _packed_key(after)


def unpack_list(payload: bytes) -> tuple[str, str]:
    """The directory and the key. Raises `BadPacket`."""
    prefix, end = _text_at(payload, 0)
    after, end = _text_at(payload, end)
    if end != len(payload) or not is_directory(prefix) or (after and not is_key(after)):
        raise BadPacket("an invalid request for a listing")
    return prefix, after


def pack_delete(keys: list[str]) -> bytes:
    """DELETE: remove objects, at most `MAX_LISTED`."""
    return b"".join(map(_packed_key, keys))


def unpack_delete(payload: bytes) -> list[str]:
    """The keys. Raises `BadPacket`."""
    keys: list[str] = []
    at = 0
    while at < len(payload) and len(keys) < MAX_LISTED:
        key, at = _key_at(payload, at)
        keys.append(key)
    if at != len(payload):
        raise BadPacket("a request to remove too many objects")
    return keys


def pack_stored(stored: Stored) -> bytes:
    """STORED: whether the object is there, and the space."""
    return _STORED.pack(*stored)


def unpack_stored(payload: bytes) -> Stored:
    """The answer of the server. Raises `BadPacket`."""
    if len(payload) != _STORED.size:
        raise BadPacket("an answer of the wrong length")
    is_ours, used_bytes, quota_bytes = _STORED.unpack(payload)
    return Stored(bool(is_ours), used_bytes, quota_bytes)


def pack_object(found: Found | None) -> bytes:
    """OBJECT: a range of an object, and its metadata; or that there is none."""
    if found is None:
        return _OBJECT.pack(0, 0, 0.0)
    return _OBJECT.pack(1, found.size_bytes, found.stored_at) + found.content


def unpack_object(payload: bytes) -> Found | None:
    """The answer of the server. Raises `BadPacket`."""
    if len(payload) < _OBJECT.size:
        raise BadPacket("an answer that is cut off")
    exists, size_bytes, stored_at = _OBJECT.unpack_from(payload)
    return Found(payload[_OBJECT.size :], size_bytes, stored_at) if exists else None


def pack_listing(listing: list[Listed], *, more: bool) -> bytes:
    """LISTING: a part of a listing, at most `MAX_LISTED`, and whether more follow."""
    entries = [
        _LISTED.pack(len(one.key), one.size_bytes, one.stored_at) + one.key.encode("ascii")
        for one in listing
    ]
    return bytes([more]) + b"".join(entries)


def unpack_listing(payload: bytes) -> tuple[list[Listed], bool]:
    """The part of the listing, and whether more follow. Raises `BadPacket`."""
    found: list[Listed] = []
    at = 1
    while at < len(payload):
        if at + _LISTED.size > len(payload):
            raise BadPacket("a listing that is cut off")
        length, size_bytes, stored_at = _LISTED.unpack_from(payload, at)
        at += _LISTED.size
        found.append(Listed(_checked(payload[at : at + length]), size_bytes, stored_at))
        at += length
    if at != max(1, len(payload)) or not payload:
        raise BadPacket("a listing that is cut off")
    return found, bool(payload[0])


def _packed_key(key: str) -> bytes:
    return _KEY.pack(len(key)) + key.encode("ascii")


def _text_at(payload: bytes, at: int) -> tuple[str, int]:
    if at + _KEY.size > len(payload):
        raise BadPacket("a key that is cut off")
    (length,) = _KEY.unpack_from(payload, at)
    start, end = at + _KEY.size, at + _KEY.size + length
    if end > len(payload):
        raise BadPacket("a key that is cut off")
    try:
        return payload[start:end].decode("ascii"), end
    except UnicodeDecodeError:
        raise BadPacket("an invalid key") from None


def _key_at(payload: bytes, at: int) -> tuple[str, int]:
    key, end = _text_at(payload, at)
    return _checked(key.encode()), end


def _checked(key: bytes) -> str:
    text = key.decode("ascii", "replace")
    if not is_key(text):
        raise BadPacket("an invalid key of an object")
    return text
