"""The end-to-end digest that identifies a change."""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from cln_backup.formats import v1

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cln_backup.model.change import Change

DIGEST_BYTES: Final = 32
NO_DIGEST: Final = bytes(DIGEST_BYTES)
"""The digest used in place of a change that does not exist."""

_START = struct.Struct("!BI")


def transaction_digest(version: int, payload: bytes) -> bytes:
    """The digest of a transaction or rider, encoded by `v1.pack_transaction`."""
    digest = change_digest(v1.TRANSACTION, version)
    digest.update(payload)
    return digest.digest()


def digest_of(version: int, transaction: Sequence[str]) -> bytes:
    """The digest of a transaction or rider."""
    return transaction_digest(version, v1.pack_transaction(transaction))


def digest_of_change(change: Change) -> bytes:
    """The digest of a change; reads a snapshot for it. Raises `StorageError`, `Damaged`."""
    if change.transaction is not None:
        return digest_of(change.version, change.transaction)
    assert change.snapshot is not None
    digest = change_digest(v1.SNAPSHOT, change.version)
    for chunk in change.snapshot.chunks():
        digest.update(chunk)
    return digest.digest()


def change_digest(change_type: int, version: int) -> blake2b:
    """The start of a change's digest, to be fed with the payload: over type, version, payload."""
    return blake2b(
        _START.pack(change_type, version),
        digest_size=DIGEST_BYTES,
        person=b"cln-backup wire",
    )
