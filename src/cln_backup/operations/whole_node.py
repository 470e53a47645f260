"""Restores a whole node: its database, its small files, its key and `backup.lock`.

In this order, so that a restore that is killed can be run again, and lightningd cannot run before
everything is there: the database is built beside its place and checked; the small files, a fresh
key, `hsm_secret` and `backup.lock` are put in place; last, the database gets its name. Meanwhile
the lock on lightningd's pid file keeps it from starting. The old node is fenced before the backup
is read.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends import place_at, redacted
from cln_backup.backends.secrets import as_before_words
from cln_backup.model.errors import (
    AlreadyExists,
    BackupError,
    Damaged,
    Locked,
    NotFound,
    StorageError,
)
from cln_backup.model.node_files import BASE, MAX_BYTES, NETWORK, TOR, NodeFile
from cln_backup.node.outside import database_path, has_network_name, require_stopped
from cln_backup.node.pid_file import nodes_kept_out, pid_file_of
from cln_backup.node.settings import (
    LOCK_NAME,
    STATE_NAME,
    Settings,
    create_settings,
    read_settings,
    settings_in,
)
from cln_backup.node.small_files import HSM_SECRET
from cln_backup.operations import keyring
from cln_backup.operations.node_secret import choose
from cln_backup.operations.restore import restore, target_path
from cln_backup.replay.replica import node_id_of
from cln_backup.storage import directories, fsio, interruption, ownership
from cln_backup.storage.put_back import put_back

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from cln_backup.backends.contract import Reader
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.secrets import Secret
    from cln_backup.backends.ticket import Size
    from cln_backup.model.change import Change
    from cln_backup.operations.node_secret import NodeSecret
    from cln_backup.operations.restore import Restored

TOR_DIR = "tor-service"
"""The directory, in the network directory, for the files of Tor's onion service."""

_BESIDE = ".from-backup"
_PRIVATE = 0o400
_READ = "look at the destination"


class File(NamedTuple):
    """A small file that is put back.

    Attributes:
        path: where it is put; a name beside it if another file has its own.
        is_there: whether it is there already, with this content.
        taken: the path of the other file; `None` if its own name is free.
    """

    file: NodeFile
    path: str
    is_there: bool
    taken: str | None


class Plan(NamedTuple):
    """All that a restore is going to do.

    Attributes:
        directory: the network directory.
        database: the path of the database.
        version: data version of the backup.
        stored_at: when its last change was stored, in seconds since 1970, if known.
        is_original: whether the storage is certainly the one that the node wrote to.
        node_id: of the node, if the backup says.
        files: the small files.
        secret: the node's `hsm_secret`; `None` if there is none at hand.
        key_file: where the fresh key goes; `None` if the backup is not encrypted.
        settings: the content of `backup.lock`.
        notices: about what cannot be restored.
    """

    directory: str
    database: str
    version: int
    stored_at: float | None
    is_original: bool
    node_id: str | None
    files: tuple[File, ...]
    secret: NodeSecret | None
    key_file: str | None
    settings: Settings
    notices: tuple[str, ...]


class RestoredNode(NamedTuple):
    """The result.

    Attributes:
        plan: what was done.
        database: see `Restored`.
        node_id: of the restored database; `None` if it has none.
        key_slot: the name of the new key slot; `None` if none was needed.
    """

    plan: Plan
    database: Restored
    node_id: str | None
    key_slot: str | None


def unlocking(url: str, secret: Secret | None) -> tuple[Secret | None, Secret | None]:
    """The secret that unlocks the backup, and the node's own, of what the operator gave.

    Words may unlock it as the releases of lightningd before 25.12 used them.

    Raises:
        Locked: words for a backup that is not encrypted: it cannot tell how the node used them.
        NotFound, Damaged, StorageError.
    """
    own = secret if secret is not None and secret.hsm_secret is not None else None
    if not keyring.is_encrypted(url):
        if own is not None and own.is_typed:
            raise Locked(
                "The backup is not encrypted, so it cannot tell whether hsm_secret has these words "
                "(since lightningd 25.12) or 32 bytes made of them. Nothing was changed. Make the "
                "file with the `lightning-hsmtool generatehsm` of the release that made the node, "
                "and name it with --hsm-secret."
            )
        return (None if own is not None else secret), own
    if own is None or not own.is_typed:
        return secret, own
    try:
        place_at(url).open_reader(secret=own).close()
    except Locked as error:
        older = as_before_words(own)
        try:
            place_at(url).open_reader(secret=older).close()
        except Locked:
            raise error from None
        return older, older
    return own, own


def plan(
    reader: Reader,
    url: str,
    directory: str,
    given: Secret | None,
    ask: Callable[[], str],
) -> Plan:
    """Looks at all that a restore from the open backup would do; changes nothing.

    Args:
        reader: of the backup.
        url: of the backup.
        directory: the network directory, which need not exist.
        given: the node's secret, if the operator gave it.
        ask: asks for the passphrase of `hsm_secret`.

    Raises:
        NotFound: the backup is empty, or this is not the path of a network directory.
        AlreadyExists: the directory has a database, or a `backup.lock` of another backup.
        NodeRunning: lightningd runs on the directory.
        Discontinuity: `hsm_secret` is of another node.
        Locked: `hsm_secret` cannot be used.
    """
    directory = os.path.abspath(directory)
    if not has_network_name(directory):
        raise NotFound(
            f"{directory} is not a network directory, which has the name of its network, such as "
            f"{os.path.join(directory, 'bitcoin')}. Nothing was changed."
        )
    if reader.standing.head is None:
        raise NotFound("Nothing to restore: the backup is empty.")
    kept, notices = _kept_files(reader)
    settings = _settings(
        kept,
        url,
        directory,
        encrypted=reader.kept_files is not None and reader.kept_files.is_encrypted,
    )
    database = database_path(directory, settings.wallet)
    _require_vacant(directory, database, url)
    files, secret_file = [], None
    for file in kept:
        if file.name == f"{NETWORK}/{HSM_SECRET}":
            secret_file = file.content
        elif file.name == f"{NETWORK}/{LOCK_NAME}":
            continue
        elif _is_put_by_restore(_path_of(file, directory), directory, database):
            notices.append(f"{file.name} in the backup is not a small file, and is left there.")
        else:
            files.append(_target(file, directory))
    there = _content(os.path.join(directory, HSM_SECRET))
    secret = choose(there, given, secret_file, ask)
    if secret is not None:
        secret.require(reader.node_id)
    key_file = None
    if "key-file=" in settings.backend_url:
        key_file = os.path.join(directory, keyring.KEY_NAME)
    return Plan(
        directory,
        database,
        reader.version,
        reader.last_change.at,
        reader.is_original,
        reader.node_id,
        tuple(files),
        secret,
        key_file,
        settings,
        tuple(notices),
    )


def _kept_files(reader: Reader) -> tuple[tuple[NodeFile, ...], list[str]]:
    kept = reader.kept_files
    if kept is None:
        return (), ["This kind of backup has no place for the node's small files."]
    try:
        newest = kept.newest()
    except Damaged as error:
        return (), [str(error)]
    if newest is None:
        return (), ["The backup does not have the node's small files."]
    notices = [f"{name} is damaged; an older set is used." for name in newest.damaged]
    return newest.files.files, notices


def _settings(kept: tuple[NodeFile, ...], url: str, directory: str, *, encrypted: bool) -> Settings:
    """The settings of the old node, with the backup's URL as it is from this machine."""
    lock = next((file for file in kept if file.name == f"{NETWORK}/{LOCK_NAME}"), None)
    settings = Settings(url)
    if lock is not None:
        settings = settings_in(lock.content, f"{LOCK_NAME} in the backup")
    bare = keyring.without_keys(url)
    key = os.path.join(directory, keyring.KEY_NAME)
    return settings._replace(backend_url=keyring.with_key_file(bare, key) if encrypted else url)


def _require_vacant(directory: str, database: str, url: str) -> None:
    if os.path.isdir(os.path.dirname(database)):
        target_path(database)
    elif os.path.dirname(database) != directory:
        raise NotFound(
            f"The node's database was {database}, and that directory does not exist here. Nothing "
            "was changed. Make it, or mount its disk."
        )
    if not os.path.lexists(directory):
        return
    if os.path.dirname(database) != directory:
        target_path(os.path.join(directory, ""))
    require_stopped(directory, None)
    lock = os.path.join(directory, LOCK_NAME)
    if fsio.kind_at(lock, op=_READ) is not None:
        named = read_settings(directory).backend_url
        if named.partition("?")[0] != url.partition("?")[0]:
            raise AlreadyExists(
                f"{lock} names another backup, {redacted(named)}. Nothing was changed. Find out "
                "whose it is, and move it away."
            )


def _path_of(file: NodeFile, directory: str) -> str:
    base = os.path.dirname(directory)
    root = {NETWORK: directory, BASE: base, TOR: os.path.join(directory, TOR_DIR)}[file.place]
    return os.path.join(root, file.path)


def _is_put_by_restore(path: str, directory: str, database: str) -> bool:
    """Whether a file would be in the way of what a restore checks, or change it.

    A journal beside the database would change its state at the first start.
    """
    own = (LOCK_NAME, STATE_NAME, keyring.KEY_NAME, HSM_SECRET)
    names = (database, pid_file_of(directory), *(os.path.join(directory, name) for name in own))
    return path.startswith((*(f"{name}/" for name in names), f"{database}-")) or path in names


def _target(file: NodeFile, directory: str) -> File:
    path = _path_of(file, directory)
    if not os.path.lexists(path):
        return File(file, path, is_there=False, taken=None)
    if _content(path) == file.content:
        return File(file, path, is_there=True, taken=None)
    beside = path + _BESIDE
    if os.path.lexists(beside) and _content(beside) != file.content:
        raise AlreadyExists(
            f"{path} and {beside} exist, and differ from the file in the backup. Nothing was "
            "changed. Move them away."
        )
    return File(file, beside, is_there=os.path.lexists(beside), taken=path)


def _content(path: str) -> bytes | None:
    """The content of a small file; `None` if there is none."""
    if fsio.kind_at(path, op=_READ) is None:
        return None
    fd = fsio.open_existing(path, writable=False, op=_READ)
    try:
        return fsio.read_at(fd, MAX_BYTES + 1, 0, op=_READ)
    finally:
        os.close(fd)


def restore_node(
    url: str,
    made: Plan,
    progress: Callable[[Size], AbstractContextManager[Callable[[Change], None] | None]],
    *,
    secret: Secret | None = None,
    on_event: OnEvent,
) -> RestoredNode:
    """Does what is planned. After any error, and if it is killed, it can be run again.

    Raises:
        WriterConflict: the old node is alive, or another process writes to the backup.
        Discontinuity: `hsm_secret` is of another node than the database, or the backup has changed
            and belongs to another node.
        BackupError: what was put in place was removed again; a file that was there is unchanged.
    """
    from cln_backup.backends.ticket import size_of

    directory = made.directory
    with interruption.deferred(), ExitStack() as undoing:
        _make_directory(directory, undoing)
        with (
            ownership.of_node(directory),
            nodes_kept_out(pid_file_of(directory)),
            place_at(url).fence(secret=secret, on_event=on_event) as writer,
            place_at(url).open_reader(secret=secret, on_event=on_event) as reader,
        ):
            found: list[str | None] = []
            slots: list[str | None] = []

            def put_the_rest(built: str) -> None:
                node_id = node_id_of(built)
                found.append(node_id)
                if made.secret is not None:
                    made.secret.require(node_id)
                if node_id is not None:
                    writer.claim(node_id)
                slots.append(_put_files(made, url, secret, undoing))

            with progress(size_of(reader)) as step:
                done = restore(reader, made.database, step, before=put_the_rest)
        undoing.pop_all()
    return RestoredNode(made, done, found[0], slots[0])


def _make_directory(directory: str, undoing: ExitStack) -> None:
    missing = []
    path = directory
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for path in reversed(missing):
        directories.make(path, op="make the network directory")
        undoing.callback(_remove_empty, path)
    if os.path.dirname(directory) in missing:  # no other process has used the lock in it
        undoing.callback(fsio.remove, pid_file_of(directory), op="remove pid file")


def _remove_empty(path: str) -> None:
    with contextlib.suppress(StorageError):  # another process put a file there
        directories.remove_empty(path, op="remove the network directory")


def _put_files(made: Plan, url: str, secret: Secret | None, undoing: ExitStack) -> str | None:
    """Puts everything but the database in place; returns the name of a new key slot."""

    def put(path: str, content: bytes, mode: int, mtime_ms: int) -> None:
        put_back(path, content, mode=mode, mtime_ms=mtime_ms)
        undoing.callback(fsio.remove, path, op="remove restored file")

    for file in made.files:
        if not file.is_there:
            put(file.path, file.file.content, file.file.mode, file.file.mtime_ms)
    slot = None
    if made.key_file is not None:
        slot = _put_key(made.key_file, url, secret, undoing)
    if made.secret is not None and made.secret.source != "directory":
        path = os.path.join(made.directory, HSM_SECRET)
        put(path, made.secret.content, _PRIVATE, 0)
    if fsio.kind_at(os.path.join(made.directory, LOCK_NAME), op=_READ) is None:
        create_settings(made.directory, made.settings)
        lock = os.path.join(made.directory, LOCK_NAME)
        undoing.callback(fsio.remove, lock, op="remove restored file")
    return slot


def _put_key(path: str, url: str, secret: Secret | None, undoing: ExitStack) -> str | None:
    """Makes a key file whose key unlocks the backup, unless there is one."""
    if os.path.lexists(path):
        added = keyring.secret_from(("key-file", path))
        with contextlib.suppress(Locked):
            place_at(keyring.without_keys(url)).open_reader(secret=added).close()
            return None
        return keyring.add_key(url, added, secret=secret)
    with keyring.key_file(path):
        added = keyring.secret_from(("key-file", path))
        slot = keyring.add_key(url, added, secret=secret)
    undoing.callback(fsio.remove, path, op="remove restored file")
    undoing.callback(_remove_slot, url, slot)
    return slot


def _remove_slot(url: str, slot: str) -> None:
    with contextlib.suppress(BackupError):  # it unlocks nothing without its file
        keyring.remove_key(url, slot)
