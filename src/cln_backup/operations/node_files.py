"""Keeps the small files of a node beside its backup."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cln_backup.model.errors import BadUrl, Damaged
from cln_backup.model.node_files import NETWORK, NodeFile
from cln_backup.node.settings import LOCK_NAME
from cln_backup.node.small_files import collect

if TYPE_CHECKING:
    from cln_backup.backends.contract import Reader
    from cln_backup.backends.node_files import KeptFiles
    from cln_backup.backends.place import Place
    from cln_backup.model.node_files import NodeFiles, Wanted
    from cln_backup.node.settings import Settings


class Kept(NamedTuple):
    """A set of files that is in the backup now.

    Attributes:
        names: of the files.
        is_new: whether it was stored now; otherwise nothing had changed.
        notices: about files that were left out.
    """

    names: tuple[str, ...]
    is_new: bool
    notices: tuple[str, ...]


def require_room_for_files(place: Place, wanted: Wanted, *, encrypt: bool) -> None:
    """Makes sure that a new backup can keep the files that were asked for by name.

    Raises `BadUrl`; nothing was made.
    """
    asked = bool(wanted.keep or wanted.hsm_secret or wanted.tor_dir)
    if asked and not place.keeps_node_files and not encrypt:
        scheme = place.url.partition(":")[0]
        raise BadUrl(
            f"A {scheme}: backup that is not encrypted has no place for the node's small files; "
            "nothing was made. These have one: a directory (dir:), a database (postgresql:), an "
            "object store (s3:, gs:, az:), and a sealed backup on a server (socket: with "
            "--encrypt)."
        )
    if wanted.hsm_secret and not encrypt:
        raise BadUrl(
            "hsm_secret is kept in an encrypted backup only: add --encrypt. Nothing was made."
        )


def keep(kept: KeptFiles, directory: str, wanted: Wanted, lock: bytes | None = None) -> Kept:
    """Stores the files of a network directory as a new set, if they differ from the newest one.

    `lock` is the content of a `backup.lock` that is not there yet. Durable when it returns.

    Raises:
        StorageError: the earlier sets are as they were.
    """
    try:
        newest = kept.newest()
    except Damaged:
        newest = None
    before = None if newest is None else newest.files
    is_refused = wanted.hsm_secret and not kept.is_encrypted
    if is_refused:
        wanted = wanted._replace(hsm_secret=False)
    files, notices = collect(directory, wanted, before)
    if is_refused:
        notices += ("hsm_secret is not kept: the backup is not encrypted.",)
    if lock is not None:
        files = _with_lock(files, lock)
    names = tuple(file.name for file in files.files)
    is_new = newest is None or newest.damaged != () or _contents(newest.files) != _contents(files)
    if is_new:
        kept.put(files)
    return Kept(names, is_new, notices)


def keep_at_init(reader: Reader, directory: str, settings: Settings) -> Kept | None:
    """As `keep`, for a new backup; `None` if it is not to have the files."""
    kept, wanted = reader.kept_files, settings.files
    if kept is None or not wanted.in_backup(is_encrypted=kept.is_encrypted):
        return None
    return keep(kept, directory, wanted, settings.packed())


def _contents(files: NodeFiles) -> list[tuple[str, int, bytes]]:
    return [(file.name, file.mode, file.content) for file in files.files]


def _with_lock(files: NodeFiles, lock: bytes) -> NodeFiles:
    name = f"{NETWORK}/{LOCK_NAME}"
    others = [file for file in files.files if file.name != name]
    added = NodeFile(name, 0o600, files.taken_ms, lock)
    return files._replace(files=tuple(sorted([*others, added])))
