"""Makes the directory of a `dir:` backup, with its first base; or removes it again."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from cln_backup.backends.dir.base import LOCK_NAME, lock_path
from cln_backup.backends.dir.keys import create_keys, key_objects
from cln_backup.backends.dir.snapshots import NewSnapshot
from cln_backup.backends.dir.store import (
    Store,
    base_name,
    read_open,
    stored_now_ms,
)
from cln_backup.backends.writer import WriterLock
from cln_backup.formats import v2
from cln_backup.model.errors import AlreadyExists, StorageError, WriterConflict
from cln_backup.model.position import EMPTY, after_snapshot, digest_of_snapshot
from cln_backup.storage import directories, fsio, interruption, scratch
from cln_backup.storage.local_objects import BUILDING, LocalObjects

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.dir.url import DirUrl
    from cln_backup.backends.secrets import Secret
    from cln_backup.model.change import Change
    from cln_backup.model.position import Position


_FIRST_BASE: Final = base_name(1, 1)
_BESIDE: Final = ("key-", "files-")
_UNFINISHED: Final = (f"{BUILDING}.", "adding.", *_BESIDE)
"""Leftovers of an interrupted `creating_backup`, useless without a base."""

_KEPT: Final = "unused."


@contextlib.contextmanager
def creating_backup(
    place: DirUrl, base: Change | None, origin: Position | None, secret: Secret | None
) -> Iterator[None]:
    """See `Place.creating`. No other process can write to the backup before the block ends.

    Leftovers of an interrupted attempt, which contain no data, are removed. Key slots and node
    files are kept under another name: they may belong to a backup whose other files were moved
    away.
    """
    made = vacant = begun = directories.make(place.path, op="create backup")
    lock: WriterLock | None = None
    created = False
    backup_id = os.urandom(v2.ID_BYTES)
    try:
        _require_vacant(place.path)
        vacant = True
        encrypted = (place.key_source or secret) is not None
        lock = WriterLock(place.path, lock_path(place), discreet=encrypted)
        _require_vacant(place.path)
        _keep_unused(place.path)
        begun = True
        _remove_unfinished(place.path)
        _create_first_base(place, backup_id, base, origin, secret)
        created = True
        yield
    except BaseException as error:
        others = not created and isinstance(error, AlreadyExists | WriterConflict)
        if vacant and not others:
            with interruption.held():
                _take_away(place.path, backup_id, begun=begun, made=made)
        raise
    finally:
        if lock is not None:
            lock.release()


def _take_away(path: str, backup_id: bytes, *, begun: bool, made: bool) -> None:
    if _withdraw(path, backup_id, begun=begun) and made:
        with contextlib.suppress(StorageError):  # not empty: another process made files there
            directories.remove_empty(path, op="remove unfinished backup")


def _withdraw(path: str, backup_id: bytes, *, begun: bool) -> bool:
    """Removes an unfinished backup, unless it was replaced; returns whether it did.

    The base first: without it, the rest is not a backup that cannot be unlocked. Before it was
    `begun`, under the lock, unfinished files may belong to another running process.
    """
    objects = LocalObjects(path)
    if objects.status(_FIRST_BASE) is not None:
        with objects.open(_FIRST_BASE, op="open base") as source:
            if read_open(source, objects.where(_FIRST_BASE)).backup_id != backup_id:
                return False
        objects.delete(_FIRST_BASE, op="remove unfinished backup")
    fsio.remove(os.path.join(path, LOCK_NAME), op="remove unfinished backup")
    if begun:
        _remove_unfinished(path)
    return True


@contextlib.contextmanager
def build_inside(path: str) -> Iterator[str]:
    """A directory inside a new backup; its files become the backup's if the block succeeds.

    The base is moved last: without it the files are not a backup. So neither an error nor another
    process leaves anything that could be mistaken for one.
    """
    made = directories.make(path, op="create backup")
    published: list[str] = []
    try:
        with scratch.directory(path, op="copy") as directory:
            inside = os.path.join(directory, "copy")
            _require_vacant(path, os.path.basename(directory))
            yield inside
            _require_vacant(path, os.path.basename(directory))
            names = directories.names(inside, op="publish copy")
            for name in sorted(names, key=lambda name: name.startswith("base-")):
                fsio.publish(
                    os.path.join(inside, name), os.path.join(path, name), op="publish copy"
                )
                published.append(name)
    except BaseException:
        for name in reversed(published):
            fsio.remove(os.path.join(path, name), op="remove unfinished copy")
        if made:
            with contextlib.suppress(StorageError):  # not empty: another process made files there
                directories.remove_empty(path, op="remove unfinished copy")
        raise


def _require_vacant(path: str, besides: str = "") -> None:
    found = directories.names(path, op="list backup")
    allowed = (*_UNFINISHED, _KEPT, LOCK_NAME, *filter(None, (besides,)))
    if any(not name.startswith(allowed) for name in found):
        raise AlreadyExists(
            f"{path} exists and is not empty; it was not changed. If it is a backup, you can use "
            "it; otherwise choose another name."
        )


def _keep_unused(path: str) -> None:
    for name in directories.names(path, op="list backup"):
        if name.startswith(_BESIDE):
            file = os.path.join(path, name)
            fsio.keep(file, os.path.join(path, _KEPT + name), op="keep unused file")
            fsio.remove(file, op="remove unused file")


def _remove_unfinished(path: str) -> None:
    for name in directories.names(path, op="list backup"):
        if name.startswith(_UNFINISHED):
            fsio.remove(os.path.join(path, name), op="remove unfinished backup")


def _create_first_base(
    place: DirUrl,
    backup_id: bytes,
    base: Change | None,
    origin: Position | None,
    secret: Secret | None,
) -> None:
    key = create_keys(place, key_objects(place.path), backup_id, secret)
    store = Store(LocalObjects(place.path), backup_id, key)
    create_first_base(store, base, origin)


def create_first_base(store: Store, base: Change | None, origin: Position | None) -> None:
    """Publishes the first base of a new backup, which is complete then."""
    size = 0
    if base is not None:
        assert base.snapshot is not None
        size = base.snapshot.size_bytes
    count = 0 if base is None else 1
    version = 0 if base is None else base.version
    start = v2.LogOffset(1, 0, bytes(v2.SEAL_BYTES))
    stored_ms = 0 if base is None else stored_now_ms(base)
    digest, content_digest = EMPTY, None
    if base is not None:
        assert base.snapshot is not None
        content_digest = digest_of_snapshot(base.snapshot)
        digest = after_snapshot(digest, version, content_digest)
    ordinal = count
    if base is not None and origin is not None and origin.digest is not None:
        ordinal, digest = origin.changes, origin.digest
    state = v2.BaseState(
        version, base is not None, True, count, size, start, ordinal, stored_ms, digest
    )
    header = store.new_header(v2.FileKind.BASE, 1, 0, v2.pack_base_state(state))
    snapshot = None if base is None else base.snapshot
    content = NewSnapshot(header, version, snapshot, content_digest)
    store.objects.put_new(_FIRST_BASE, "base", content.chunks(), op="publish new backup")
