"""Key slots of an encrypted backup: the master key, encrypted once for each secret."""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum
from typing import Final, NamedTuple

from cln_backup.formats import v2
from cln_backup.formats.seals import KEY_BYTES, derive

MAGIC: Final = b"CLNKEY2\n"
LABEL_BYTES: Final = 32

_SLOT = struct.Struct("!8sB7x16sQ32sIII32s")
_WRAPPED_BYTES: Final = KEY_BYTES + 16
_CHECK_BYTES: Final = 32
FILE_BYTES: Final = _SLOT.size + _WRAPPED_BYTES + _CHECK_BYTES
_NONCE: Final = bytes(12)  # the wrapping key is used once: it comes from a fresh salt

assert _SLOT.size == 116
assert FILE_BYTES == 196

# libsodium's "moderate" limits: 256 MiB for about half a second.
_MEMORY_KIB: Final = 1 << 18
_PASSES: Final = 3
_LANES: Final = 1
_MAX_MEMORY_KIB: Final = 1 << 21
_MAX_KIB_PASSES: Final = 1 << 24
"""Memory times passes; about 20 seconds."""

_MIN_LANE_KIB: Final = 8
_MAX_LANES: Final = 64


class SecretKind(IntEnum):
    """The kind of secret that opens a key slot."""

    PASSPHRASE = 1
    KEY_FILE = 2
    HSM_SECRET = 3


class KeySlot(NamedTuple):
    """One key slot, as its file has it.

    Attributes:
        label: its name, which is also the name of its file.
        created_ms: since 1970.
        wrapped: the master key, encrypted.
        opened: the part of the file that is not encrypted; `wrapped` authenticates it.
    """

    kind: SecretKind
    backup_id: bytes
    created_ms: int
    label: str
    memory_kib: int
    passes: int
    lanes: int
    salt: bytes
    wrapped: bytes
    opened: bytes


def pack_key_slot(
    kind: SecretKind,
    label: str,
    backup_id: bytes,
    created_ms: int,
    salt: bytes,
    secret: bytes,
    master_key: bytes,
) -> bytes:
    """The file of a key slot: the master key, encrypted for the secret.

    A passphrase is stretched, which takes 256 MiB of memory and some time; other secrets have 32
    random bytes or more and need no stretching.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cost = (_MEMORY_KIB, _PASSES, _LANES) if kind is SecretKind.PASSPHRASE else (0, 0, 0)
    name = label.encode()
    assert len(name) <= LABEL_BYTES
    opened = _SLOT.pack(MAGIC, kind, backup_id, created_ms, name, *cost, salt)
    key = _wrapping_key(kind, cost, salt, secret, backup_id)
    data = opened + AESGCM(key).encrypt(_NONCE, master_key, opened)
    return data + hashlib.sha256(data).digest()


def unpack_key_slot(data: bytes) -> KeySlot:
    """Decodes the file of a key slot. Raises `Malformed` if any bit of it was changed."""
    if len(data) != FILE_BYTES or data[:8] != MAGIC:
        raise v2.Malformed("not a key slot")
    if hashlib.sha256(data[:-_CHECK_BYTES]).digest() != data[-_CHECK_BYTES:]:
        raise v2.Malformed("a key slot whose checksum does not match")
    _, kind, backup_id, created, name, memory, passes, lanes, salt = _SLOT.unpack_from(data)
    if kind not in SecretKind.__members__.values():
        raise v2.Malformed("a key slot of an unknown kind")
    if memory > _MAX_MEMORY_KIB or memory * passes > _MAX_KIB_PASSES or lanes > _MAX_LANES:
        raise v2.Malformed("a key slot that asks for more memory or time than is allowed")
    if kind == SecretKind.PASSPHRASE and (
        passes < 1 or lanes < 1 or memory < _MIN_LANE_KIB * lanes
    ):
        raise v2.Malformed("a key slot with a cost that Argon2id does not support")
    label = name.rstrip(b"\x00").decode("utf-8", "replace")
    wrapped = data[_SLOT.size : -_CHECK_BYTES]
    opened = data[: _SLOT.size]
    return KeySlot(
        SecretKind(kind), backup_id, created, label, memory, passes, lanes, salt, wrapped, opened
    )


def unwrap(slot: KeySlot, secret: bytes) -> bytes | None:
    """The master key, or `None` if the secret is wrong."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cost = (slot.memory_kib, slot.passes, slot.lanes)
    key = _wrapping_key(slot.kind, cost, slot.salt, secret, slot.backup_id)
    try:
        return AESGCM(key).decrypt(_NONCE, slot.wrapped, slot.opened)
    except InvalidTag:
        return None


def _wrapping_key(
    kind: SecretKind, cost: tuple[int, int, int], salt: bytes, secret: bytes, backup_id: bytes
) -> bytes:
    if kind is SecretKind.PASSPHRASE:
        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

        memory_kib, passes, lanes = cost
        stretched = Argon2id(
            salt=salt, length=KEY_BYTES, iterations=passes, lanes=lanes, memory_cost=memory_kib
        ).derive(secret)
    else:
        stretched = secret
    return derive(stretched, salt, b"cln-backup holder" + bytes([kind]) + backup_id)
