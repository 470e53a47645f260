"""Small backups in a directory, plain and encrypted, for the tests of format 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup.backends import create_backend, open_writer, place_at
from cln_backup.model.change import Change
from tests.histories import SnapshotBytes, append, payment, payments, started_node

if TYPE_CHECKING:
    from pathlib import Path

    from cln_backup.backends.events import Event
    from tests.histories import Told

KEY = bytes(range(1, 33))
KINDS = ("plain", "encrypted")
SNAPSHOT = SnapshotBytes(b"SQLite format 3\x00" + b"all that came before" * 30)


def url_of(kind: str, directory: Path) -> str:
    """The URL of a backup `node` in a directory, beside its key."""
    if kind == "plain":
        return f"dir://{directory}/node"
    key = directory / "node.key"
    key.write_bytes(KEY)
    return f"dir://{directory}/node?key-file={key}"


def make_every_kind_of_file(url: str) -> None:
    """A backup with a base, two writers' segments, a snapshot, a rider and a dropped change."""
    create_backend(url, Change(0, SNAPSHOT, None))
    append(url, started_node())
    with open_writer(url) as backend:
        backend.rewind()
        backend.add_change(payment(3, "in the place of a dropped one"))
        for change in payments(4, 6):
            backend.add_change(change)
        backend.add_change(Change(7, SNAPSHOT, None))
        backend.add_change(payment(8))


def read_all(url: str) -> tuple[list[Told], list[str]]:
    """The changes that a reader gets, every byte checked; and the notices."""
    from tests.histories import told

    events: list[Event] = []
    with place_at(url).open_reader(on_event=events.append) as backend:
        found = told(backend.stream_changes())
        backend.check()
        return found, [event.text for event in events]
