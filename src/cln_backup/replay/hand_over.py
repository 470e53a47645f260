"""Makes a kept replica a node's database without a copy, and the other way round."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import apsw

from cln_backup.model.errors import StorageError
from cln_backup.model.position import UNKNOWN
from cln_backup.replay.kept import KeptReplica
from cln_backup.replay.kept_database import mark
from cln_backup.replay.kept_directory import DATABASE_NAME
from cln_backup.replay.note import Note, NoteFile
from cln_backup.replay.reached import Reached, mark_of
from cln_backup.storage import directories, fsio

if TYPE_CHECKING:
    from cln_backup.backends.contract import Reader
    from cln_backup.model.change import Change

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


def adopt(path: str, directory: str, reader: Reader) -> KeptReplica:
    """Makes a database a replica at the head of a backup, and opens it.

    The database was just restored from the reader's view, and moves into the directory, which must
    be new and on the same disk. Raises `StorageError`, `Damaged`.
    """
    standing = reader.standing
    last: Change | None = None
    for last in reader.stream_changes(standing.version):
        if last.snapshot is not None:  # to be read before the next change
            for _ in last.snapshot.chunks():
                pass
    assert last is not None
    assert standing.head is not None
    position = standing.position
    reached = Reached(
        standing.version,
        position.changes,
        position.digest or UNKNOWN,
        mark_of(last),
        standing.head.foreign_keys,
        last.stored_ms,
    )
    directories.make(directory, op="make replica")
    adopted = os.path.join(directory, DATABASE_NAME)
    fsio.publish(path, adopted, op="make replica")
    mark(adopted, reached.user_version, reached.mark)
    note = NoteFile(directory)
    note.write(Note(position, last.stored_ms))
    note.close()
    return KeptReplica.open(directory)
