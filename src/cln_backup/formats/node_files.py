"""The object with a node's small files: compressed, then sealed as a whole."""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import Final

from cln_backup.formats import v2
from cln_backup.formats.encoding import inflate
from cln_backup.formats.seals import KeySealer, derive
from cln_backup.model.errors import BadPacket
from cln_backup.model.node_files import (
    MAX_BYTES,
    MAX_FILES,
    MAX_NAME_BYTES,
    NodeFile,
    NodeFiles,
    is_valid_name,
)

MAGIC: Final = b"CLNFIL2\n"

_OPEN = struct.Struct("!8sB7x16sQQ32s")
_COUNT = struct.Struct("!H")
_FILE = struct.Struct("!HHQI")
_CHECK_BYTES: Final = 32

OPEN_BYTES: Final = _OPEN.size
assert OPEN_BYTES == 80
assert _FILE.size == 16

_MAX_UNPACKED_BYTES: Final = _COUNT.size + MAX_FILES * (_FILE.size + MAX_NAME_BYTES) + MAX_BYTES
MAX_OBJECT_BYTES: Final = OPEN_BYTES + _MAX_UNPACKED_BYTES + (1 << 16)
"""No object is larger, compressed or not."""

_MODE_BITS: Final = 0o777


def pack(
    files: NodeFiles, backup_id: bytes, number: int, salt: bytes, master_key: bytes | None
) -> bytes:
    """The object with the number: encrypted if there is a master key.

    `salt` must be fresh random bytes: the key of the object is derived from it.
    """
    assert len(files.files) <= MAX_FILES
    assert sum(len(file.content) for file in files.files) <= MAX_BYTES
    pieces = [_COUNT.pack(len(files.files))]
    for file in files.files:
        assert is_valid_name(file.name)
        name = file.name.encode()
        mode = file.mode & _MODE_BITS
        pieces += [_FILE.pack(len(name), mode, file.mtime_ms, len(file.content)), name]
        pieces.append(file.content)
    body = zlib.compress(b"".join(pieces))
    cipher = v2.PLAIN if master_key is None else v2.AES_256_GCM
    opened = _OPEN.pack(MAGIC, cipher, backup_id, number, files.taken_ms, salt)
    if master_key is None:
        return opened + body + hashlib.sha256(opened + body).digest()
    return opened + _sealer(master_key, salt, backup_id).seal(0, opened, body)


def unpack(data: bytes, backup_id: bytes, number: int, master_key: bytes | None) -> NodeFiles:
    """The files in the object with the number.

    Raises:
        Malformed: any bit of it was changed, it is a different object, or it is too large.
    """
    taken_ms = unpack_taken_ms(data, backup_id, number)
    opened, sealed = data[:OPEN_BYTES], data[OPEN_BYTES:]
    _, cipher, _, _, _, salt = _OPEN.unpack(opened)
    if any(opened[9:16]) or cipher != (v2.PLAIN if master_key is None else v2.AES_256_GCM):
        raise v2.Malformed("node files with another encryption than the backup's")
    if master_key is None:
        body: bytes | memoryview | None = sealed[:-_CHECK_BYTES]
        if hashlib.sha256(data[:-_CHECK_BYTES]).digest() != sealed[-_CHECK_BYTES:]:
            body = None
    else:
        body = _sealer(master_key, salt, backup_id).unseal(0, opened, sealed)
    if body is None:
        raise v2.Malformed("node files that were modified")
    try:
        unpacked = inflate(bytes(body), _MAX_UNPACKED_BYTES)
    except BadPacket as error:
        raise v2.Malformed(f"node files with {error}") from None
    return NodeFiles(taken_ms, _files_in(unpacked))


def unpack_taken_ms(data: bytes, backup_id: bytes, number: int) -> int:
    """When the files were taken, unchecked: from the first `OPEN_BYTES`, which need no key.

    Raises:
        Malformed: it is a different object, or too large.
    """
    if not OPEN_BYTES <= len(data) <= MAX_OBJECT_BYTES or data[: len(MAGIC)] != MAGIC:
        raise v2.Malformed("not node files")
    _, _, found_id, found_number, taken_ms, _ = _OPEN.unpack_from(data)
    if found_id != backup_id or found_number != number:
        raise v2.Malformed("node files of another backup, or with another number")
    return int(taken_ms)


def _sealer(master_key: bytes, salt: bytes, backup_id: bytes) -> KeySealer:
    return KeySealer(derive(master_key, salt, b"cln-backup files" + backup_id))


def _files_in(data: bytes) -> tuple[NodeFile, ...]:
    try:
        (count,), at = _COUNT.unpack_from(data), _COUNT.size
        found = []
        for _ in range(count):
            name_bytes, mode, mtime_ms, content_bytes = _FILE.unpack_from(data, at)
            at += _FILE.size
            name = data[at : at + name_bytes].decode()
            at += name_bytes
            content = data[at : at + content_bytes]
            at += content_bytes
            if not is_valid_name(name) or mode & ~_MODE_BITS:
                raise v2.Malformed("node files with an invalid name or mode")
            found.append(NodeFile(name, mode, mtime_ms, content))
    except (struct.error, UnicodeDecodeError):
        raise v2.Malformed("node files that are cut off") from None
    names = [file.name for file in found]
    if at != len(data) or count > MAX_FILES or names != sorted(set(names)):
        raise v2.Malformed("node files that are not in order")
    return tuple(found)
