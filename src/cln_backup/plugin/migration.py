"""Sets a restore point before a start of the node changes the database's schema."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cln_backup.backends import redacted
from cln_backup.model.migration import RestorePoint, alters_schema, sets_schema_version
from cln_backup.node.settings import read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cln_backup.backends.contract import Standing, Writer

STARTED = "A migration of the database begins"
"""The log phrase of a restore point that is set."""


class MigrationWatch:
    """Watches the calls of one start, up to `init`.

    The first transaction of every start writes the schema's version, unless a migration commits in
    pieces. So the migration began with the first call, even if the schema is changed only later.
    """

    def __init__(self, directory: str, backend: Writer, log: Callable[[str], None]) -> None:
        """`backend` is the backup, before the first call of the start."""
        self._directory = directory
        self._backend = backend
        self._log = log
        self._began_at: Standing | None = None
        self._is_done = backend.standing.head is None  # a new node has nothing to go back to

    def before(self, transaction: Sequence[str]) -> None:
        """Call it before a call is stored; a restore point is then on stable storage.

        The restore point of an earlier start stays, unless the database is still, or again, before
        it, or the backup is a different one.

        Raises:
            StorageError, BadSettings: the restore point cannot be set; the node must not commit.
        """
        if self._is_done:
            return
        if self._began_at is None:
            self._began_at = self._backend.standing
        if alters_schema(transaction):
            self._is_done = True
            self._set(self._began_at)
        elif sets_schema_version(transaction):
            self._is_done = True

    def _set(self, began_at: Standing) -> None:
        version, changes, number, digest = (
            *(began_at.version, began_at.version_count),
            *began_at.position[1:],
        )
        state = read_state(self._directory)
        known, url = state.restore_point, redacted(self._backend.place.url)
        if known is not None and not known.is_of(url):
            self._log(
                f"The restore point at data version {known.version} was set in another backup, so "
                "it is dropped"
            )
        elif known is not None and version > known.version and changes > known.changes:
            return
        hexed = None if digest is None else digest.hex()
        point = RestorePoint(version, changes, time.time(), None, url, number, hexed)
        write_state(self._directory, state._replace(restore_point=point))
        self._log(
            f"{STARTED}: the restore point is data version {version}. If the migration is "
            "interrupted and cannot continue, backup-cli undo-migration goes back to it"
        )

    def node_is_up(self) -> None:
        """Removes the restore point, before the node has any contact with its peers. Durable.

        Raises:
            StorageError, BadSettings: the restore point is still set; the node must not continue.
        """
        state = read_state(self._directory)
        if state.restore_point is not None:
            write_state(self._directory, state._replace(restore_point=None))
