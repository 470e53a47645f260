"""What a backup is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.model import statements

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Protocol

    class Snapshot(Protocol):
        """A whole SQLite database file, handed on in pieces so that memory stays small."""

        @property
        def size_bytes(self) -> int:
            """Size of the database file."""

        def chunks(self) -> Iterator[bytes]:
            """The file's bytes in order; may be called again. Raises `StorageError`, `Damaged`."""


class Kind(Enum):
    """What a change does to the database."""

    TRANSACTION = "transaction"
    RIDER = "rider"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a node's history; `version` is the data version after it.

    Exactly one of the two others is set. `transaction` holds the statements of one call of the
    `db_write` hook as text; bytes that are no UTF-8 stand in it as lone surrogates (PEP 383).
    A transaction made only of `PRAGMA` statements is a rider: it is replayed outside a
    transaction and leaves the version as it was.
    """

    version: int
    snapshot: Snapshot | None
    transaction: Sequence[str] | None
    stored_ms: int | None = field(default=None, compare=False)
    """When it was stored, in milliseconds since 1970; 0 where that is not known. `None` for a
    change that was not stored yet: who stores it takes the time of that moment."""
    kind: Kind = field(init=False)
    """Whether this is a snapshot, a transaction or a rider."""

    def __post_init__(self) -> None:
        kind = Kind.TRANSACTION
        if self.transaction is None:
            kind = Kind.SNAPSHOT
        elif statements.is_rider(self.transaction):
            kind = Kind.RIDER
        object.__setattr__(self, "kind", kind)


class Head(NamedTuple):
    """The last change of a backup, as far as continuity needs to know it.

    Attributes:
        version: the data version of the backup.
        kind: what the change is.
        foreign_keys: whether foreign keys are enforced after it; `False` after an unmatched
            `PRAGMA foreign_keys = OFF`.
    """

    version: int
    kind: Kind
    foreign_keys: bool


FOREIGN_KEYS_ON = "PRAGMA foreign_keys = ON;"
FOREIGN_KEYS_OFF = "PRAGMA foreign_keys = OFF;"
