"""Positions: the end of a history, distinguishing two histories at one version.

The digest is chained over the content of all changes. It does not depend on how a backend stores
them: format, compression, encryption and compactions do not change it. `docs/format.md` defines it
byte by byte, with test vectors.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from cln_backup.model.change import Snapshot

DIGEST_BYTES: Final = 32
UNKNOWN: Final = bytes(DIGEST_BYTES)
"""Stored for an unknown digest: by a release that did not have digests, or after one."""

_DOMAIN: Final = b"cln-backup history"
_LINK = struct.Struct(f"!{len(_DOMAIN)}s32sBQ")
_STATEMENTS: Final = 1
_SNAPSHOT: Final = 2

EMPTY: Final = sha256(_DOMAIN).digest()
"""The digest of a history without changes."""


class Position(NamedTuple):
    """The end of a history.

    Attributes:
        version: data version of the last change; 0 in an empty history.
        changes: number of changes ever appended and not dropped, including those that a
            compaction has folded since. `file:` counts from its last compaction on.
        digest: of all these changes, 32 bytes; `None` if unknown.
    """

    version: int
    changes: int
    digest: bytes | None

    def is_other_history(self, other: Position) -> bool:
        """Whether two positions at one version are proven to be of different histories.

        `False` proves nothing if one of the two has no digest. A copy that could not continue the
        digest of a compacted history counts as a different one.
        """
        known = self.digest is not None and other.digest is not None
        return self.version == other.version and known and self.digest != other.digest


def after_statements(digest: bytes, version: int, statements: bytes) -> bytes:
    """The digest after a transaction or rider; unknown after what is unknown.

    `statements` are joined by one zero byte, as in format 1.
    """
    return _after(digest, _STATEMENTS, version, statements)


def after_snapshot(digest: bytes, version: int, content_digest: bytes) -> bytes:
    """The digest after a snapshot, whose content has the digest given (`digest_of_snapshot`)."""
    if content_digest == UNKNOWN:
        return UNKNOWN
    return _after(digest, _SNAPSHOT, version, content_digest)


def digest_of_snapshot(snapshot: Snapshot) -> bytes:
    """The SHA-256 of a database file; reads all of it. Raises `StorageError`, `Damaged`."""
    found = sha256()
    for chunk in snapshot.chunks():
        found.update(chunk)
    return found.digest()


def _after(digest: bytes, kind: int, version: int, content: bytes) -> bytes:
    if digest == UNKNOWN:
        return UNKNOWN
    return sha256(_LINK.pack(_DOMAIN, digest, kind, version) + content).digest()
