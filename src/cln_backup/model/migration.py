"""Migrations: recognizes changes of the database's schema in a node's history.

The first start of a newer lightningd changes the schema, in one transaction or in several, and
writes the schema's version at the very end. Every later start writes that version again, with its
first change.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.model.change import Kind
from cln_backup.model.position import DIGEST_BYTES, Position

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cln_backup.model.change import Change

_ALTERS = re.compile(r"\s*(?:CREATE|ALTER|DROP)\b", re.IGNORECASE)
_SETS_VERSION = re.compile(r"\s*UPDATE\s+version\s+SET\s+version\s*=", re.IGNORECASE)


class RestorePoint(NamedTuple):
    """The state of the database before a migration, to which an interrupted one is undone.

    Attributes:
        version: its data version.
        changes: the number of changes in the backup.
        at: when it was set, in seconds since 1970.
        undo_from: data version of the database that an unfinished undo found; `None` if none began.
        url: of the backup, without secrets; the versions say nothing about another one. `None` if
            an earlier release set it.
        number: `changes` of the backup's `Position` then; `None` if unknown.
        digest: of that position, in hex; `None` if unknown, as always for `file:`.
    """

    version: int
    changes: int
    at: float
    undo_from: int | None = None
    url: str | None = None
    number: int | None = None
    digest: str | None = None

    def is_of(self, url: str) -> bool:
        """Whether it belongs to the backup at this URL (without secrets)."""
        return self.url in (None, url)

    @property
    def position(self) -> Position | None:
        """Where the history was; `None` if that does not tell it from another one."""
        if self.number is None or self.digest is None:
            return None
        return Position(self.version, self.number, bytes.fromhex(self.digest))


def is_digest(text: object) -> bool:
    """Whether this is a position's digest in hex, as a restore point has it."""
    return (
        isinstance(text, str) and re.fullmatch(rf"[0-9a-f]{{{2 * DIGEST_BYTES}}}", text) is not None
    )


def alters_schema(transaction: Sequence[str]) -> bool:
    """Whether a call changes the database's schema."""
    return any(map(_ALTERS.match, transaction))


def sets_schema_version(transaction: Sequence[str]) -> bool:
    """Whether a call writes the version of the database's schema, at the end of all migrations."""
    return any(map(_SETS_VERSION.match, transaction))


class MigrationTracker:
    """Follows the changes of a history, and knows whether a migration is under way.

    The making of a new node's tables is not one: there is nothing to go back to. A snapshot ends
    one: the changes between it and the migration are unknown.

    Attributes:
        open_at: the data version before the first change of the schema; `None` if no migration is
            under way.
        is_clear: whether the migration certainly begins there. It does not if a rider is its
            first sign: the transaction before may have changed rows for it.
        is_complete: whether the database had all its tables at some point: there was a snapshot, or
            the schema's version was written.
    """

    def __init__(self) -> None:
        self.open_at: int | None = None
        self.is_clear = True
        self._version = 0
        self.is_complete = False

    def follow(self, change: Change) -> None:
        """Takes the next change into account."""
        transaction = change.transaction
        if transaction is None or sets_schema_version(transaction):
            self.open_at, self.is_complete = None, True
        elif self.open_at is None and self.is_complete:
            is_rider = change.kind is Kind.RIDER
            if is_rider or alters_schema(transaction):
                self.open_at, self.is_clear = self._version, not is_rider
        self._version = change.version
