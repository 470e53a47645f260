"""Changes that a `dir:` backup dropped: each in a file of its own, `dropped-N`, kept forever."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.backends.dir.snapshots import NewSnapshot, StoredSnapshot
from cln_backup.backends.dir.store import damaged
from cln_backup.formats import v2
from cln_backup.formats.v1 import unpack_transaction
from cln_backup.formats.v2_stream import pack_transaction
from cln_backup.model.change import Change
from cln_backup.model.errors import AlreadyExists

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.dir.store import Store
    from cln_backup.model.change import Snapshot

_PREFIX: Final = "dropped-"
_NAME: Final = re.compile(r"dropped-(\d{10,20})(?:-(\d+))?")


class _Statements(NamedTuple):
    """A transaction, written in the same way as a snapshot."""

    content: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def chunks(self) -> Iterator[bytes]:
        yield self.content


def set_aside(store: Store, change: Change, epoch: int) -> str:
    """Writes a change to a file of its own; returns its path. Durable with its name.

    If the name exists, a number is added: nothing is overwritten.
    """
    content: Snapshot
    if change.snapshot is not None:
        content = change.snapshot
    else:
        assert change.transaction is not None
        content = _Statements(pack_transaction(change.transaction))
    version, size = change.version, content.size_bytes
    stored_ms = change.stored_ms or 0
    state = v2.DroppedState(version, size, change.snapshot is not None, stored_ms)
    header = store.new_header(v2.FileKind.DROPPED, version, epoch, v2.pack_dropped_state(state))
    objects = store.objects
    built = objects.prepare("drop", NewSnapshot(header, version, content).chunks())
    try:
        number = 1
        while True:
            name = f"{_PREFIX}{version:010}" + (f"-{number}" if number > 1 else "")
            with contextlib.suppress(AlreadyExists):
                objects.publish(built, name, op="set dropped change aside")
                return objects.where(name)
            number += 1
    except BaseException:
        objects.discard(built)
        raise


def dropped(store: Store) -> Iterator[Change]:
    """All changes set aside, by version and in the order in which they were dropped.

    Raises:
        Damaged, StorageError.
    """
    for state, _, stored in sorted(_files(store), key=lambda file: (file[0].version, file[1])):
        if state.snapshot:
            yield Change(state.version, stored, None, state.stored_ms)
        else:
            transaction = unpack_transaction(b"".join(stored.chunks()))
            yield Change(state.version, None, transaction, state.stored_ms)


def check_dropped(store: Store) -> None:
    """Checks every byte of the changes set aside. Raises `Damaged`, `StorageError`."""
    for _, _, stored in _files(store):
        for _ in stored.chunks():
            pass


def _files(store: Store) -> Iterator[tuple[v2.DroppedState, int, StoredSnapshot]]:
    kind = v2.FileKind.DROPPED
    for name in store.objects.list(_PREFIX):
        found = _NAME.fullmatch(name)
        if found is None:
            continue
        version = int(found[1])
        with store.objects.open(name, op="open set-aside file") as source:
            header = store.read_header(source, name, kind, version)
        if header is None:
            damaged(store.objects.where(name), 0, 0, "its header is missing")
        state = v2.unpack_dropped_state(header.state)
        size = state.size_bytes
        stored = StoredSnapshot(store, name, kind, version, state.version, size, None)
        yield state, int(found[2] or 1), stored
