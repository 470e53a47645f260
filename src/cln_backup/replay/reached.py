"""How far a kept replica has come: kept in two numbers of SQLite's header, and in a note."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.model.change import Kind
from cln_backup.model.position import EMPTY, UNKNOWN, Position, after_snapshot, after_statements
from cln_backup.model.statements import foreign_keys_after

if TYPE_CHECKING:
    from cln_backup.model.change import Change

_COUNT_BITS: Final = 30
_COUNTS: Final = 1 << _COUNT_BITS
_MARK_BYTES: Final = 4


class Reached(NamedTuple):
    """The state of a replica between two changes.

    Attributes:
        version: data version of the last change.
        changes: its number in the history, as in a `Position`.
        digest: of the history up to it; `UNKNOWN` if it is.
        mark: identifies the last change itself, where the history has no digest.
        foreign_keys: whether foreign keys are enforced after it.
        stored_ms: when it was stored, as `Change.stored_ms`.
    """

    version: int = 0
    changes: int = 0
    digest: bytes = UNKNOWN
    mark: int = 0
    foreign_keys: bool = True
    stored_ms: int | None = None

    @property
    def position(self) -> Position | None:
        """The position; `None` before the first change."""
        if not self.changes:
            return None
        return Position(self.version, self.changes, _known(self.digest))

    @property
    def user_version(self) -> int:
        """For SQLite's header: the number of changes, and whether foreign keys are enforced."""
        return self.changes % _COUNTS | (not self.foreign_keys) << _COUNT_BITS

    def after(self, change: Change, content_digest: bytes = UNKNOWN) -> Reached:
        """The state after one more change; for a snapshot, `content_digest` is its SHA-256."""
        version, foreign_keys = change.version, True
        if change.transaction is None:
            digest = after_snapshot(self.digest, version, content_digest)
        else:
            digest = after_statements(self.digest, version, _joined(change))
            foreign_keys = self.foreign_keys
            if change.kind is Kind.RIDER:
                foreign_keys = foreign_keys_after(change.transaction, foreign_keys)
        mark, count = mark_of(change), self.changes + 1
        return Reached(version, count, digest, mark, foreign_keys, change.stored_ms)

    def knowing(self, position: Position | None) -> Reached:
        """The same state with the digest of this position, if that is the same one and known."""
        same = position is not None and position[:2] == (self.version, self.changes)
        if not same or position is None or position.digest is None:
            return self
        return self._replace(digest=position.digest)


def stored(version: int, user_version: int, mark: int, near: int | None) -> Reached:
    """The state that is in a replica's file; `near` is about the number of changes, if known."""
    changes, off = user_version % _COUNTS, user_version >> _COUNT_BITS & 1
    if changes and near is not None:
        changes = max(0, near + (changes - near + _COUNTS // 2) % _COUNTS - _COUNTS // 2)
    return Reached(version, changes, UNKNOWN, mark, not off)


def mark_of(change: Change) -> int:
    """A number that identifies a change, for `PRAGMA application_id`."""
    if change.transaction is None:
        assert change.snapshot is not None
        size = change.snapshot.size_bytes
        digest = sha256(f"snapshot {change.version} {size}".encode()).digest()
    else:
        digest = after_statements(EMPTY, change.version, _joined(change))
    return int.from_bytes(digest[:_MARK_BYTES], "big", signed=True)


def _joined(change: Change) -> bytes:
    assert change.transaction is not None
    return "\0".join(change.transaction).encode("utf-8", "surrogateescape")


def _known(digest: bytes) -> bytes | None:
    return None if digest == UNKNOWN else digest
