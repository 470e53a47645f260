"""Bases of a `dir:` backup: finds the newest one."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.backends.dir.history import Base
from cln_backup.backends.dir.keys import key_objects, listed, require_listed, unlock
from cln_backup.backends.dir.store import (
    Listing,
    Store,
    base_name,
    damaged,
    list_files,
    read_open,
)
from cln_backup.backends.inventory import Inventory, Key, space_bytes
from cln_backup.backends.paths import missing_in, require_backup_directory
from cln_backup.formats import v2
from cln_backup.model.errors import Damaged, StorageError
from cln_backup.storage.local_objects import LocalObjects

if TYPE_CHECKING:
    from cln_backup.backends.dir.url import DirUrl
    from cln_backup.backends.secrets import Secret
    from cln_backup.storage.source import Source


LOCK_NAME: Final = "backup.writer"
PREPARED: Final = "compaction"
"""The purpose in the name of a prepared base."""


class Prepared(NamedTuple):
    """A base that was built and has no name yet: the content of a ticket.

    Attributes:
        name: of the object.
        made_from: the generation that it follows.
        seal: the last one in it, as hexadecimal digits; another base does not have it.
    """

    name: str
    made_from: int
    seal: str


class Opened(NamedTuple):
    """A directory whose newest base was read.

    Attributes:
        held: the base; until it is closed, the files that it needs do not expire.
    """

    store: Store
    base: Base
    held: Source


def lock_path(place: DirUrl) -> str:
    """The file that the writer has locked."""
    return os.path.join(place.path, LOCK_NAME)


def identity(place: DirUrl) -> tuple[str, bytes]:
    """The directory and the id of a backup, which need no key. Raises `NotFound`, `Damaged`."""
    return place.path, _newest_header(place).backup_id


def is_encrypted(place: DirUrl) -> bool:
    """Whether a backup is encrypted. Raises `NotFound`, `Damaged`."""
    return _newest_header(place).cipher != v2.PLAIN


def list_keys(place: DirUrl) -> list[Key]:
    """See `Place.keys`."""
    return require_listed(place.path, key_objects(place.path), _newest_header(place))


def take_inventory(place: DirUrl) -> Inventory:
    """See `Place.usage`."""
    objects = LocalObjects(place.path)
    name, listing = _newest_base(objects)
    found = newest = _header(objects, name)
    with contextlib.suppress(StorageError):  # it may expire at this moment
        found = _header(objects, base_name(*listing.bases[0]))
    cipher, keys = None, []
    if newest.cipher != v2.PLAIN:
        cipher, keys = "AES-256-GCM", listed(key_objects(place.path), newest.backup_id)
    oldest_at, space = found.created_ms / 1000, space_bytes([place.path])
    return Inventory(cipher, tuple(keys), len(listing.bases), oldest_at, space)


def _newest_header(place: DirUrl) -> v2.Open:
    objects = LocalObjects(place.path)
    return _header(objects, _newest_base(objects)[0])


def _header(objects: LocalObjects, name: str) -> v2.Open:
    with objects.open(name, op="open base") as source:
        return read_open(source, objects.where(name))


def _newest_base(objects: LocalObjects) -> tuple[str, Listing]:
    """The name of the newest base in a directory, and a listing of the directory."""
    require_backup_directory(objects.directory)
    listing = list_files(objects)
    if listing.bases:
        return base_name(*listing.bases[-1]), listing
    if listing.segments:
        damaged(objects.directory, 0, 0, "it has no base, from which the history starts")
    raise missing_in(objects.directory)


def open_base(place: DirUrl, secret: Secret | None, known: Store | None = None) -> Opened:
    """Reads the newest base, and holds it.

    Reuses the master key of the `known` store, if there is one.

    Raises:
        NotFound, Locked, Damaged, StorageError.
    """
    objects = LocalObjects(place.path)
    held = None
    while held is None:  # it may expire at this moment
        name, listing = _newest_base(objects)
        held = objects.open_held(name, op="open base")
    try:
        store, base = _read(place, secret, known, objects, held, listing)
    except BaseException:
        held.close()
        raise
    return Opened(store, base, held)


def _read(
    place: DirUrl,
    secret: Secret | None,
    known: Store | None,
    objects: LocalObjects,
    source: Source,
    listing: Listing,
) -> tuple[Store, Base]:
    generation, segment = listing.bases[-1]
    name = base_name(generation, segment)
    path = objects.where(name)
    found = read_open(source, path)
    if found.cipher == v2.PLAIN and (place.key_source or secret) is not None:
        raise Damaged(
            f"The backup in {place.path} is not encrypted, but a key was given for it. Your "
            "backup may have been replaced by another one. If you know that it is not "
            "encrypted, leave out the key."
        )
    key = None
    if found.cipher != v2.PLAIN:
        if known is not None and known.backup_id == found.backup_id:
            key = known.master_key
        else:
            key = unlock(place, key_objects(place.path), found.backup_id, secret)
    store = Store(objects, found.backup_id, key)
    header = store.read_header(source, name, v2.FileKind.BASE, generation)
    if header is None:
        damaged(path, 0, 0, "its header is missing")
    state = v2.unpack_base_state(header.state)
    if state.start.segment != segment:
        damaged(path, 0, 0, "its name and its header have different segment numbers")
    return store, Base(generation, name, state, found.epoch)
