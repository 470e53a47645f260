"""Format 1: the file of the community's `backup` plugin. `docs/format.md` has the byte tables.

The format has no checksum. An entry is checked by what lightningd puts in it: statements are never
empty, and the last one of a transaction names the version that it starts from.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.model.errors import BadChange

if TYPE_CHECKING:
    from collections.abc import Sequence

FILE_VERSION: Final = 1
START: Final = FILE_VERSION.to_bytes(4, "big")
"""The first bytes of each file."""

HEADER_BYTES: Final = 512
TRANSACTION: Final = 1
SNAPSHOT: Final = 2
MAX_RIDER_BYTES: Final = 1 << 20
MAX_PAYLOAD_BYTES: Final = 0xFFFF_FFFF
MAX_VERSION: Final = 0xFFFF_FFFF
SQLITE_MAGIC: Final = b"SQLite format 3\x00"

_HEADER = struct.Struct("!IIQIQQ")
_ENTRY = struct.Struct("!IIB")
ENTRY_BYTES: Final = _ENTRY.size

assert _HEADER.size == 36
assert ENTRY_BYTES == 9


class Header(NamedTuple):
    """The first 512 bytes of a file.

    Attributes:
        version: data version of the last change; 0 in an empty backup.
        offset_bytes: where the next entry goes.
        prev_version, prev_offset_bytes: where a rewind goes back to; both 0 after a rewind.
        version_count: number of changes; may be wrong in old files.
    """

    version: int
    offset_bytes: int
    prev_version: int
    prev_offset_bytes: int
    version_count: int


class EntryHead(NamedTuple):
    """The 9 bytes before each payload."""

    length_bytes: int
    version: int
    type: int


def pack_header(header: Header) -> bytes:
    """The header as it is in the file, without the zeros that pad it to 512 bytes."""
    return _HEADER.pack(FILE_VERSION, *header)


def unpack_header(data: bytes) -> tuple[int, Header]:
    """The file version and, meaningful for `FILE_VERSION` only, the header."""
    file_version, *fields = _HEADER.unpack_from(data)
    return file_version, Header(*fields)


def pack_entry_head(length_bytes: int, version: int, entry_type: int) -> bytes:
    """The 9 bytes before a payload. Raises `BadChange` for values out of range."""
    if not 0 <= version <= MAX_VERSION:
        raise BadChange(f"Format 1 cannot store data version {version}; nothing was written.")
    if length_bytes > MAX_PAYLOAD_BYTES:
        raise BadChange(
            f"Format 1 cannot store a change of {length_bytes} bytes (at most 4 GiB - 1); "
            "nothing was written."
        )
    return _ENTRY.pack(length_bytes, version, entry_type)


def unpack_entry_head(data: bytes) -> EntryHead:
    """Decodes the 9 bytes before a payload."""
    return EntryHead(*_ENTRY.unpack_from(data))


def pack_transaction(transaction: Sequence[str]) -> bytes:
    """Statements joined by NUL bytes, the encoding of every format and of the wire.

    Raises `BadChange` for statements that could not be read back.
    """
    good = len(transaction) > 0
    for statement in transaction:  # counting in the joined text would take six times as long
        if not statement or "\x00" in statement:
            good = False
    if not good:
        raise BadChange(
            "A statement is empty or contains a NUL byte, which a backup cannot store; "
            "nothing was written."
        )
    try:
        return "\x00".join(transaction).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise BadChange(
            "A statement contains an invalid Unicode character; nothing was written."
        ) from None


def unpack_transaction(payload: bytes) -> tuple[str, ...]:
    """The statements of a payload; bytes that are not valid UTF-8 become lone surrogates."""
    return tuple(payload.decode("utf-8", "surrogateescape").split("\x00"))
