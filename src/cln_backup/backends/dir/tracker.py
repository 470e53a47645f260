"""The state of a `dir:` backup after the records of its log up to a place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cln_backup.formats import v2
from cln_backup.model.change import Kind
from cln_backup.model.position import EMPTY, UNKNOWN, after_snapshot, after_statements
from cln_backup.model.statements import foreign_keys_after

if TYPE_CHECKING:
    from collections.abc import Sequence

_SNAPSHOT: Final = v2.Type.SNAPSHOT  # in the hot path


def rider_type(transaction: Sequence[str], head: v2.Mark | None) -> v2.Type:
    """The type of a rider's record; it tells whether foreign keys are enforced after it."""
    if foreign_keys_after(transaction, head is None or head.foreign_keys):
        return v2.Type.RIDER
    return v2.Type.RIDER_WITHOUT_KEYS


class Tracker:
    """The state after the records up to here."""

    def __init__(
        self, ordinal: int, head: v2.Mark | None, before: v2.Mark | None, *, may_rewind: bool
    ) -> None:
        self.ordinal = ordinal
        self.head = head
        self.before = before
        self.may_rewind = may_rewind

    @property
    def version(self) -> int:
        """Data version of the head."""
        return 0 if self.head is None else self.head.version

    @property
    def digest(self) -> bytes:
        """Digest of the history up to here; `UNKNOWN` after a release that did not store it."""
        if self.head is not None:
            return self.head.digest
        return UNKNOWN if self.ordinal else EMPTY

    def append(
        self,
        record_type: v2.Type,
        version: int,
        start: v2.LogOffset,
        stored_ms: int,
        hashed: bytes,
    ) -> None:
        """As `apply`, for a change; of it, the packed statements or the snapshot's digest."""
        after = after_snapshot if record_type is _SNAPSHOT else after_statements
        self.apply(record_type, version, start, stored_ms, after(self.digest, version, hashed))

    def apply(
        self,
        record_type: v2.Type,
        version: int,
        start: v2.LogOffset,
        stored_ms: int,
        digest: bytes = UNKNOWN,
    ) -> None:
        """Applies one record, after which the history has the given digest.

        Raises:
            Malformed: it does not follow.
        """
        if record_type is v2.Type.DROP:
            if not self.may_rewind or self.head is None:
                raise v2.Malformed("a DROP record, but there is no change to drop")
            self.head, self.before, self.may_rewind = self.before, None, False
            self.ordinal -= 1
            return
        foreign_keys = self.head is None or self.head.foreign_keys
        if record_type is v2.Type.TRANSACTION:
            kind = Kind.TRANSACTION
        elif record_type is v2.Type.SNAPSHOT:
            kind, foreign_keys = Kind.SNAPSHOT, True
        elif record_type in (v2.Type.RIDER, v2.Type.RIDER_WITHOUT_KEYS):
            kind, foreign_keys = Kind.RIDER, record_type is v2.Type.RIDER
        else:
            raise v2.Malformed(f"a record of type {record_type.name} in the log")
        prev_digest, self.before = self.digest, self.head
        self.head = v2.Mark(kind, foreign_keys, version, start, stored_ms, prev_digest, digest)
        self.may_rewind = True
        self.ordinal += 1
