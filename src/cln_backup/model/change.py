"""Changes: the parts of a backup's history."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.model import statements

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Protocol

    class Snapshot(Protocol):
        """A whole SQLite database file, passed on in pieces so that memory stays small."""

        @property
        def size_bytes(self) -> int:
            """Size of the database file."""

        def chunks(self) -> Iterator[bytes]:
            """The file's bytes in order; may be called again. Raises `StorageError`, `Damaged`."""


class Kind(Enum):
    """The kind of a change, by its effect on the database."""

    TRANSACTION = "transaction"
    RIDER = "rider"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a node's history; `version` is the data version after it.

    Exactly one of `snapshot` and `transaction` is set. `transaction` has the statements of one
    call of the `db_write` hook as text; bytes that are not valid UTF-8 are lone surrogates
    (PEP 383). A transaction made only of `PRAGMA` statements is a rider: it is replayed outside
    a transaction and does not change the version.
    """

    version: int
    snapshot: Snapshot | None
    transaction: Sequence[str] | None
    stored_ms: int | None = field(default=None, compare=False)
    """When it was stored, in milliseconds since 1970; 0 if unknown. `None` for a change that is not
    stored yet: the backend sets it to the current time."""

    @property
    def kind(self) -> Kind:
        """Whether this is a snapshot, a transaction or a rider."""
        if self.transaction is None:
            return Kind.SNAPSHOT
        return Kind.RIDER if statements.is_rider(self.transaction) else Kind.TRANSACTION


class Head(NamedTuple):
    """The last change of a backup, as far as the check of continuity needs it.

    Attributes:
        version: the data version of the backup.
        kind: the kind of the change.
        foreign_keys: whether foreign keys are enforced after it; `False` after an unmatched
            `PRAGMA foreign_keys = OFF`.
    """

    version: int
    kind: Kind
    foreign_keys: bool


FOREIGN_KEYS_ON = "PRAGMA foreign_keys = ON;"
FOREIGN_KEYS_OFF = "PRAGMA foreign_keys = OFF;"
