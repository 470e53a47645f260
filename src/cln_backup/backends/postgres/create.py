"""Makes a backup in a database under a name of its own, which it gets at the end."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Final

from cln_backup.backends.postgres.schema import require_tables
from cln_backup.backends.postgres.session import Taken
from cln_backup.backends.postgres.tables import LOCK, TableObjects, TableStore
from cln_backup.model.errors import AlreadyExists, BackupError, WriterConflict
from cln_backup.storage import interruption

if TYPE_CHECKING:
    from cln_backup.backends.postgres.link import Link
    from cln_backup.backends.postgres.session import Session

_CREATING: Final = "creating"


class Creation:
    """A backup that is being made; no other process finds it by its name before it is published."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._name = f"{link.at.node}.unfinished-{os.urandom(6).hex()}"
        self._backup: int | None = None

    def begin(self) -> None:
        """Makes the tables if there are none, and a row for the backup.

        Raises:
            AlreadyExists: there is a backup of this name.
            WriterConflict: another process is making one.
        """
        require_tables(self._link)
        node = self._link.at.node
        self._require_vacant()
        if not self._link.until(self._lock):
            raise WriterConflict(
                f"Another process is making the backup {self._link.at.path}; this one made nothing."
            )
        self._require_vacant()
        for row in self._link.rows(
            "SELECT backup FROM cln_backup.heads WHERE starts_with(node, $1)", f"{node}.unfinished-"
        ):
            assert isinstance(row[0], int)
            remove_backup(self._link, row[0])
        self.make_row(epoch=0, generation=1, owner="")

    def make_row(self, *, epoch: int, generation: int, owner: str) -> None:
        """Makes the row of the new backup in `heads`."""
        [[made]] = self._link.rows(
            "INSERT INTO cln_backup.heads (node, epoch, generation, owner) "
            "VALUES ($1, $2, $3, $4) RETURNING backup",
            *(self._name, epoch, generation, owner),
        )
        assert isinstance(made, int)
        self._backup = made

    @property
    def backup(self) -> int:
        """The number of the new backup in the tables."""
        assert self._backup is not None
        return self._backup

    def _lock(self, session: Session, until: float) -> bool:
        values = self._link.at.node, _CREATING, ""
        found = session.run(f"SELECT pg_try_advisory_lock({LOCK})", values, until=until)
        return found[0][0] == 1

    def _require_vacant(self) -> None:
        node = self._link.at.node
        if self._link.rows("SELECT 1 FROM cln_backup.heads WHERE node = $1", node):
            raise self._exists()

    def _exists(self) -> AlreadyExists:
        return AlreadyExists(
            f"There is a backup {self._link.at.path}; it was not changed. You can use it, or "
            "choose another name with node=NAME."
        )

    def store(self, backup_id: bytes, key: bytes | None) -> TableStore:
        """The new backup's objects."""
        assert self._backup is not None
        return TableStore(TableObjects(self._link, self._backup), backup_id, key)

    def url(self, url: str) -> str:
        """The URL of the backup while it is not published."""
        return with_node(url, self._name)

    def publish(self) -> None:
        """Gives the backup its name; durable when it returns. Raises `AlreadyExists`."""
        values = self._backup, self._link.at.node
        try:
            self._link.rows("UPDATE cln_backup.heads SET node = $2 WHERE backup = $1", *values)
        except Taken:
            raise self._exists() from None

    def finish(self) -> None:
        """Ends the right to make it."""
        self._link.until(
            lambda session, until: session.run("SELECT pg_advisory_unlock_all()", until=until)
        )

    def withdraw(self) -> None:
        """Removes what was made."""
        if self._backup is not None:
            with interruption.held(), contextlib.suppress(BackupError):
                remove_backup(self._link, self._backup)


def remove_backup(link: Link, backup: int) -> None:
    """Removes a backup: its head first, without which the rest is none."""
    link.rows("DELETE FROM cln_backup.heads WHERE backup = $1", backup)
    link.rows("DELETE FROM cln_backup.objects WHERE backup = $1", backup)
    TableObjects(link, backup).remove_parts(-(1 << 62), 1 << 62)


def with_node(url: str, node: str) -> str:
    """A URL with another node's name."""
    return re.sub(r"([?&]node=)[^&]*", lambda found: found[1] + node, url)
