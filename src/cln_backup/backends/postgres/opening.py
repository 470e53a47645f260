"""Opens a backup in a database: its head, its newest base, and the end of its log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.backends.dir.history import Base
from cln_backup.backends.dir.keys import unlock
from cln_backup.backends.dir.log import find_end
from cln_backup.backends.dir.store import damaged, read_open
from cln_backup.backends.dir.tracker import Tracker
from cln_backup.backends.postgres.schema import require_version
from cln_backup.backends.postgres.tables import TableObjects, TableStore
from cln_backup.formats import v2
from cln_backup.model.errors import AccessDenied, Damaged, IncompleteCopy, NotFound

if TYPE_CHECKING:
    from cln_backup.backends.dir.log import LogEnd
    from cln_backup.backends.dir.walk import Walks
    from cln_backup.backends.postgres.link import Link
    from cln_backup.backends.postgres.session import Session
    from cln_backup.backends.secrets import Secret

_HEAD: Final = (
    "SELECT backup, epoch, segment, end_bytes, seal, generation, owner, writer "
    "FROM cln_backup.heads WHERE node = $1"
)

_LINE: Final = """
SELECT system_identifier::text || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8)
FROM pg_control_system()
"""


class HeadRow(NamedTuple):
    """The row of a backup in `heads`.

    Attributes:
        backup: its number in the other tables.
        epoch: how many writers have opened it.
        segment, end_bytes, seal: of the last record; 0 and empty in a log without records.
        generation: of the newest base.
        owner: the node that it belongs to, encrypted if the backup is; empty if none yet.
        writer: the last process that opened it to write, in JSON.
    """

    backup: int
    epoch: int
    segment: int
    end_bytes: int
    seal: bytes
    generation: int
    owner: str
    writer: str


class Opened(NamedTuple):
    """A backup as it was at one moment.

    Attributes:
        numbers: of the log's segments, from the base on.
        end, tracker: the end of the log, and the state there.
    """

    store: TableStore
    base: Base
    numbers: list[int]
    end: LogEnd
    tracker: Tracker


def read_head(link: Link) -> HeadRow:
    """Reads the head of a backup. Raises `NotFound`, `StorageError`."""

    def attempt(session: Session, until: float) -> HeadRow:
        require_version(session, until)
        return head_row(session, link, until)

    return link.until(attempt)


def head_row(session: Session, link: Link, until: float) -> HeadRow:
    """As `read_head`, with a connection."""
    rows = session.run(_HEAD, (link.at.node,), until=until)
    if not rows:
        raise NotFound(
            f"There is no backup at {link.at.path}. If there was one, first check the host, the "
            "database and node= in the URL. `backup-cli init` makes a new one."
        )
    return HeadRow(*rows[0])  # type: ignore[arg-type]


def line_of(link: Link) -> str:
    """The server's own history: its cluster, and its timeline, which a promotion changes.

    Empty if the server does not tell. Raises `StorageError`.
    """
    asked = False

    def attempt(session: Session, until: float) -> str:
        nonlocal asked
        if asked:
            return ""  # some services refuse, and break the connection's answer
        asked = True
        found = session.run(_LINE, until=until)
        return str(found[0][0] or "")

    try:
        return link.until(attempt)
    except AccessDenied:
        return ""


def newest_header(link: Link, head: HeadRow) -> tuple[TableObjects, str, v2.Open]:
    """The newest base's name, and the open part of its header. Raises `Damaged`."""
    objects = TableObjects(link, head.backup)
    found = objects.list(f"base-{head.generation:010}-")
    if not found:
        damaged(link.at.path, 0, 0, "it has no base, from which the history starts")
    with objects.open(found[0], op="open base") as source:
        return objects, found[0], read_open(source, objects.where(found[0]))


def open_backup(
    link: Link,
    head: HeadRow,
    secret: Secret | None,
    known: TableStore | None = None,
    walks: Walks | None = None,
) -> Opened:
    """Reads the newest base and the end of the log.

    Reuses the master key of the `known` store, if there is one. `walks` are as for `find_end`.

    Raises:
        NotFound, Locked, Damaged, StorageError.
    """
    at = link.at
    objects, name, found = newest_header(link, head)
    if found.cipher == v2.PLAIN and (at.key_source or secret) is not None:
        raise Damaged(
            f"The backup {at.path} is not encrypted, but a key was given for it. Your backup may "
            "have been replaced by another one. If you know that it is not encrypted, leave out "
            "the key."
        )
    key = None
    if found.cipher != v2.PLAIN:
        if known is not None and known.backup_id == found.backup_id:
            key = known.master_key
        else:
            key = unlock(at, objects, found.backup_id, secret)
    store = TableStore(objects, found.backup_id, key)
    path = objects.where(name)
    with objects.open(name, op="open base") as source:
        header = store.read_header(source, name, v2.FileKind.BASE, head.generation)
    if header is None:
        damaged(path, 0, 0, "its header is missing")
    base = Base(head.generation, name, v2.unpack_base_state(header.state), found.epoch)
    return _with_end(store, base, head, walks)


def _with_end(store: TableStore, base: Base, head: HeadRow, walks: Walks | None) -> Opened:
    state = base.state
    numbers = list(range(state.start.segment, head.segment + 1))
    head_mark, before = base.marks()
    in_base = Tracker(state.ordinal, head_mark, before, may_rewind=head_mark is not None)
    end, tracker = find_end(store, numbers, in_base, alone=True, walks=walks)
    end = end._replace(last_number=max(head.segment, state.start.segment - 1))
    if not end.segment:
        end = end._replace(epoch=base.epoch)
    lacks = end.torn_bytes or end.lacks or (end.segment, end.end_bytes) < head[2:4]
    if lacks or (state.start.offset_bytes and end[:2] < state.start[:2]):
        error = IncompleteCopy(
            f"The end of the backup {store.path} is missing: records that its head names are not "
            f"there. Changes up to version {tracker.version} are. Nothing was changed. The "
            "database was restored in part, or rows were removed; restore all of it."
        )
        error.good_version = tracker.version
        raise error
    return Opened(store, base, numbers, end, tracker)
