"""Makes a kept replica a node's database, without a copy."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import apsw

from cln_backup.model.errors import StorageError
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from cln_backup.replay.kept import KeptReplica

_PRAGMAS: Final = (
    "wal_checkpoint(TRUNCATE)",
    "journal_mode = DELETE",
    "synchronous = FULL",
)
_UNMARK: Final = "BEGIN; PRAGMA user_version = 0; PRAGMA application_id = 0; COMMIT"
_OP: Final = "put database in place"


def hand_over(replica: KeptReplica, path: str) -> int:
    """Gives a replica's database, head included, its name as a node's; returns its size in bytes.

    The path must be on the same disk, and is never overwritten. On stable storage, with its name,
    when this returns; then nothing is left of the replica but its lock, until it is closed. After
    an error, and if the process is killed before, the next one finds the replica, or starts a new
    one.

    Raises:
        AlreadyExists: the path exists.
        StorageError.
    """
    replica.commit_head()
    connection = replica.connection
    connection.authorizer = None
    try:
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}").fetchall()
        mode = connection.execute("PRAGMA journal_mode").fetchall()
        connection.execute(_UNMARK)
        connection.close()
    except apsw.Error as error:
        raise StorageError(f"Cannot {_OP}: {error}. The replica is kept.") from error
    assert mode == [("delete",)], "the changes are in the file itself"
    fd = fsio.open_existing(replica.path, writable=True, op=_OP)
    try:
        fsio.sync(fd, op=_OP)
        size = fsio.size_bytes(fd)
    finally:
        os.close(fd)
    fsio.publish(replica.path, path, op=_OP)
    return size
