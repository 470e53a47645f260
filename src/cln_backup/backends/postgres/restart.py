"""Starts the history of a backup over from a snapshot, and keeps the earlier one.

The new history is a backup with rows of its own; the two change their names in one transaction. So
nothing is copied, and an older writer, which has the number of the earlier backup, stores nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cln_backup.backends.dir.snapshots import NewSnapshot
from cln_backup.backends.dir.store import base_name, stored_now_ms
from cln_backup.backends.postgres.create import Creation
from cln_backup.formats import v2
from cln_backup.model.position import EMPTY, after_snapshot, digest_of_snapshot

if TYPE_CHECKING:
    from cln_backup.backends.postgres.head import HeadWriter
    from cln_backup.backends.postgres.link import Link
    from cln_backup.backends.postgres.session import Session
    from cln_backup.backends.postgres.tables import TableStore
    from cln_backup.model.change import Change

_KEY: Final = "key-"

_RETIRE: Final = """
UPDATE cln_backup.heads SET node = $3, epoch = epoch + 1 WHERE backup = $1 AND epoch = $2
"""
_PUBLISH: Final = "UPDATE cln_backup.heads SET node = $2 WHERE backup = $1"
"""Fails if the first one did nothing: the name is taken then."""

_TOUCH: Final = """
UPDATE cln_backup.heads SET node = node WHERE backup = $1 AND node = $2 RETURNING 1
"""


def start_over(
    link: Link, store: TableStore, generation: int, segment: int, head: HeadWriter, change: Change
) -> str:
    """Puts a backup of the snapshot alone in this one's place; returns the earlier one's name.

    Raises:
        WriterConflict: another writer is active; nothing was changed.
        StorageError: it is done, or the backup is unchanged.
    """
    snapshot = change.snapshot
    assert snapshot is not None
    assert head.row is not None
    row = head.row
    creation = Creation(link)
    creation.make_row(epoch=row.epoch + 1, generation=generation + 1, owner=row.owner)
    new = creation.store(store.backup_id, store.master_key)
    try:
        for name in store.objects.list(_KEY):
            with store.objects.open(name, op="keep key") as source:
                content = source.read_at(0, source.size_bytes())
            new.objects.put_new(name, "key", [content], op="keep key")
        digest = digest_of_snapshot(snapshot)
        start = v2.LogOffset(segment, 0, bytes(v2.SEAL_BYTES))
        state = v2.BaseState(
            *(change.version, True, True, 1, snapshot.size_bytes, start, 1, stored_now_ms(change)),
            after_snapshot(EMPTY, change.version, digest),
        )
        header = new.new_header(
            v2.FileKind.BASE, generation + 1, row.epoch + 1, v2.pack_base_state(state)
        )
        content_of = NewSnapshot(header, change.version, snapshot, digest)
        name = base_name(generation + 1, segment)
        new.objects.put_new(name, "restart", content_of.chunks(), op="publish new base")
        kept = f"{link.at.node}.before-undo-{generation}"
        _exchange(link, head, creation, kept)
    except BaseException:
        creation.withdraw()
        raise
    return kept


def _exchange(link: Link, head: HeadWriter, creation: Creation, kept: str) -> None:
    """Exchanges the names, in one transaction, if no other process has become the writer."""
    is_unknown = False

    def attempt(session: Session, until: float) -> None:
        nonlocal is_unknown
        assert head.row is not None
        if is_unknown:
            found = session.run(_TOUCH, (creation.backup, link.at.node), until=until)
            if found:
                return
        head.require_unchanged(session, until)
        is_unknown = True
        try:
            session.run("BEGIN", until=until)
            session.run(_RETIRE, (head.row.backup, head.row.epoch, kept), until=until)
            session.run(_PUBLISH, (creation.backup, link.at.node), until=until)
            session.run("COMMIT", until=until, waiting=link.watch(session, until))
        except BaseException:
            session.close()  # the transaction is not ended
            raise

    link.until(attempt)
