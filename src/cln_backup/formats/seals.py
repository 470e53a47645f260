"""Seals: detect the change of any bit in a file of format 2.

Without encryption a seal is a digest, which anyone who can write to the backup can compute. With
encryption, each file has a key of its own and the seal is an authentication tag, which cannot be
computed without the key.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Protocol

from cln_backup.formats import v2

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32


class Sealer(Protocol):
    """Seals the parts of one file; `index` counts them, from 0 for the header."""

    def seal(self, index: int, covered: bytes, body: bytes) -> bytes:
        """The body, encrypted or not, followed by its seal, which also covers `covered`."""

    def unseal(
        self, index: int, covered: bytes, sealed: bytes | memoryview
    ) -> bytes | memoryview | None:
        """The body, or `None` if anything was changed. It may be a part of `sealed`."""


class DigestSealer:
    """Seals with the first 16 bytes of SHA-256 over the covered bytes and the body."""

    def __init__(self) -> None:
        self._start = hashlib.sha256()  # copying it is faster than making a new one

    def seal(self, index: int, covered: bytes, body: bytes) -> bytes:  # noqa: ARG002
        """See `Sealer`."""
        digest = self._start.copy()
        digest.update(covered + body)
        return body + digest.digest()[: v2.SEAL_BYTES]

    def unseal(
        self,
        index: int,  # noqa: ARG002
        covered: bytes,
        sealed: bytes | memoryview,
    ) -> bytes | memoryview | None:
        """See `Sealer`."""
        body = sealed[: -v2.SEAL_BYTES]
        digest = self._start.copy()
        digest.update(covered)
        digest.update(body)
        seal = digest.digest()[: v2.SEAL_BYTES]
        return body if sealed[-v2.SEAL_BYTES :] == seal else None


class KeySealer:
    """Encrypts and seals with AES-256-GCM; the nonce is the index: one key a file."""

    def __init__(self, key: bytes) -> None:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher: AESGCM = AESGCM(key)
        self._invalid = InvalidTag

    def seal(self, index: int, covered: bytes, body: bytes) -> bytes:
        """See `Sealer`."""
        return self._cipher.encrypt(index.to_bytes(12, "big"), body, covered)

    def unseal(
        self, index: int, covered: bytes, sealed: bytes | memoryview
    ) -> bytes | memoryview | None:
        """See `Sealer`."""
        try:
            return self._cipher.decrypt(index.to_bytes(12, "big"), sealed, covered)
        except self._invalid:
            return None


def file_sealer(header: v2.Open, master_key: bytes | None) -> Sealer:
    """The sealer of the file with this header.

    The file's key is derived (HKDF-SHA256) from the master key and 32 random bytes in the header,
    which is as good as a random key that is stored encrypted, and takes no more room.
    """
    if header.cipher == v2.PLAIN:
        return DigestSealer()
    assert master_key is not None, "encrypted, and not unlocked"
    return KeySealer(derive(master_key, header.salt, b"cln-backup file" + header.backup_id))


def derive(secret: bytes, salt: bytes, purpose: bytes) -> bytes:
    """A key of 32 bytes for one purpose: HKDF with SHA-256 (RFC 5869)."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), KEY_BYTES, salt, purpose).derive(secret)


def pack_header(header: v2.Open, state: bytes, sealer: Sealer) -> bytes:
    """A file's first 512 bytes; the last 16 of them are the first seal of its chain."""
    head = v2.pack_open(header)
    return head + sealer.seal(0, head, state)


def unpack_state(data: bytes, sealer: Sealer) -> bytes | None:
    """The state in a header, or `None` if anything in the header was changed."""
    found = sealer.unseal(0, data[: v2.OPEN_BYTES], data[v2.OPEN_BYTES : v2.HEADER_BYTES])
    return None if found is None else bytes(found)
