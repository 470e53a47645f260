"""Makes a backup of a node, and brings one that is out of date up to the node."""

from __future__ import annotations

import contextlib
import json
import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends import place_at, redacted
from cln_backup.backends.events import ignore
from cln_backup.model.change import Change
from cln_backup.model.continuity import Storage, possible_loss
from cln_backup.model.errors import (
    AlreadyExists,
    BadSettings,
    Discontinuity,
    NotFound,
    StorageError,
)
from cln_backup.model.node_files import Wanted
from cln_backup.node.outside import find_database, require_stopped, storage_of
from cln_backup.node.settings import (
    LOCK_NAME,
    Settings,
    State,
    create_settings,
    read_settings,
    read_state,
    write_state,
)
from cln_backup.operations.keyring import add_key, encrypted, secrets_at_init
from cln_backup.operations.node_files import keep_at_init, require_room_for_files
from cln_backup.operations.proven import proven_copy, require_newer
from cln_backup.replay.replica import DatabaseFile, copy_database, node_id_of
from cln_backup.storage import disks, interruption, ownership, scratch
from cln_backup.storage.file_system import lacks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.place import Place
    from cln_backup.backends.secrets import Secret


class Initialized(NamedTuple):
    """The result of `initialize`.

    Attributes:
        database: the node's database, `None` if it has none yet.
        version: data version of the backup.
        snapshot_bytes: size of the snapshot that the backup starts with, 0 without one.
        same_disk: whether the backup is on the database's disk, and would be lost with it.
        backend_url: of the backup, with the key file's path if one was made.
        lacks: weaknesses of the backup's location, one line each.
        node_files: the names of the node's small files in the backup; `None` if none are kept.
        node_files_notices: about files that were left out, one line each.
    """

    database: str | None
    version: int
    snapshot_bytes: int
    same_disk: bool
    backend_url: str
    lacks: tuple[str, ...]
    node_files: tuple[str, ...] | None = None
    node_files_notices: tuple[str, ...] = ()


class Appended(NamedTuple):
    """An appended snapshot; other attributes are those of `Initialized`.

    Attributes:
        version_before: data version of the backup before.
    """

    database: str
    version: int
    snapshot_bytes: int
    same_disk: bool
    version_before: int


def initialize(
    url: str,
    directory: str | None,
    wallet: str | None = None,
    *,
    encrypt: bool = False,
    secret: Secret | None = None,
    files: Wanted | None = None,
) -> Initialized:
    """Makes a backup and, for a node's network directory, the `backup.lock` that points to it.

    If the node has a database, the backup starts with a snapshot of it. With `encrypt` it is
    encrypted, and unlocked by a key file that is made in the directory, by `secret` and by the
    node's own secret. Backup and lock file are on stable storage when this returns; the lock file
    is written last, so that a node never starts on an unfinished backup. The node's small `files`
    are in the backup then, too, if it is encrypted or if that is wanted.

    Raises:
        AlreadyExists: a backup or a lock file exists; both are unchanged.
        NodeRunning: lightningd is running on the directory.
        BackupError: nothing was made, or everything made was removed, except a backup on a server,
            which the message then names.
    """
    place = place_at(url)
    if directory is None:
        with (
            interruption.deferred(),
            place.creating(secret=secret),
            place.open_reader(secret=secret),
        ):
            found = lacks(place.storage_dir)
            interruption.finished()
        return Initialized(None, 0, 0, False, url, found)
    settings = Settings(url, wallet, files=files or Wanted())
    require_room_for_files(place, settings.files, encrypt=encrypt)
    database = find_database(directory, wallet)
    require_stopped(directory, database)
    lock = os.path.join(directory, LOCK_NAME)
    if os.path.lexists(lock):
        raise AlreadyExists(
            f"{lock} exists: this node already has a backup, which was not changed. To start over, "
            "move the lock file away and name a backup that does not exist yet."
        )
    if not os.access(directory, os.W_OK):
        raise StorageError(f"This user cannot write to {directory}; nothing was made.")
    _refuse_existing(place, secret)
    secrets = secrets_at_init(directory, secret) if encrypt else []
    with (
        interruption.deferred(),
        ownership.of_node(directory),
        encrypted(url, directory) if encrypt else contextlib.nullcontext(url) as url,
        contextlib.nullcontext() if database is None else _snapshot_of(database) as base,
        place_at(url).creating(base, secret=None if encrypt else secret) as place,
    ):
        for added in secrets:
            add_key(url, added)
        settings = settings._replace(backend_url=url)
        with place.open_reader(secret=None if encrypt else secret) as reader:
            kept = keep_at_init(reader, directory, settings)
            same_disk = _same_disk(place, database or directory)
            found = lacks(place.storage_dir, directory)
        with interruption.held():
            _forget_former_backup(directory)
            try:
                create_settings(directory, settings)
            except StorageError as error:
                if not place.removes_unfinished:
                    raise _only_on_server(url, error) from error
                raise
            interruption.finished()
    snapshot = None if base is None else base.snapshot
    version, size = (
        (0, 0) if base is None or snapshot is None else (base.version, snapshot.size_bytes)
    )
    names, notices = (None, ()) if kept is None else (kept.names, kept.notices)
    return Initialized(database, version, size, same_disk, url, found, names, notices)


def _only_on_server(url: str, error: StorageError) -> StorageError:
    fields = json.dumps({"backend_url": redacted(url)})
    return StorageError(
        f"{error}. The backup at {redacted(url)} was made; a server does not remove it. To use "
        f"it, write backup.lock by hand: {fields}"
    )


def take_snapshot(
    directory: str,
    *,
    secret: Secret | None = None,
    on_event: OnEvent = ignore,
    unproven: bool = False,
) -> Appended:
    """Appends a snapshot of the node's database to its backup, which is out of date.

    Nothing in the backup is removed. The snapshot is on stable storage when this returns. It is
    appended only if the database is proven to descend from what the backup holds (`proven_copy`),
    or with `unproven`.

    Raises:
        NodeRunning: lightningd is running on the directory.
        Discontinuity: the database is older than the backup, or parts of it are, so the backup must
            be kept.
        ReplayFailed: the backup does not replay, so that nothing can be proven.
        BadSettings, NotFound, WriterConflict, Damaged, StorageError: the backup is unchanged.
    """
    settings = read_settings(directory)
    database = find_database(directory, settings.wallet)
    require_stopped(directory, database)
    if database is None:
        raise NotFound(f"There is no database in {directory} to take a snapshot of.")
    place, node_id = place_at(settings.backend_url), node_id_of(database)
    with interruption.deferred(), ExitStack() as work:
        if unproven:
            change, proven_at = work.enter_context(_snapshot_of(database)), None
        else:
            # Closed again: the community's server has one client at a time.
            place.open_writer(node_id, secret=secret, on_event=on_event).close()
            state = read_state(directory)
            loss = possible_loss(Storage(state.boot_id, state.mount), storage_of(database))
            with place.open_reader(secret=secret) as reader:
                copy = work.enter_context(
                    proven_copy(
                        reader,
                        database,
                        None,  # a fresh replay also rules out a fault of the kept one
                        head_in_doubt=loss is None,
                        alarmed=state.alarm is not None,
                    )
                )
                proven_at = reader.standing.position
            change = Change(copy.version, DatabaseFile(copy.path), None)
        backend = work.enter_context(place.open_writer(node_id, secret=secret, on_event=on_event))
        require_newer(change.version, backend.version)
        if proven_at not in (None, backend.standing.position):
            raise Discontinuity(
                "Another process changed the backup meanwhile. Nothing was stored; try again."
            )
        before = backend.version
        alarm = read_state(directory).alarm
        if alarm is not None and alarm.starts_over and backend.can_start_over:
            backend.start_over(change)
        else:
            backend.add_change(change)
        interruption.finished()
        _clear_alarm(directory)
        assert change.snapshot is not None
        same_disk = _same_disk(place, database)
        size = change.snapshot.size_bytes
        return Appended(database, change.version, size, same_disk, before)


def _clear_alarm(directory: str) -> None:
    state = read_state(directory)
    if state.alarm is not None:
        write_state(directory, state._replace(alarm=None))


def _forget_former_backup(directory: str) -> None:
    """Removes what `backup.state` knows about a backup that a new one replaces."""
    try:
        state = read_state(directory)
    except BadSettings:  # it cannot be understood
        write_state(directory, State())
        return
    of_backup = {"restore_point": None, "alarm": None, "drilled_at": None, "drill_passed": None}
    new = state._replace(**of_backup, drill_restore_s=None, last_compaction_at=None)
    if new != state:
        write_state(directory, new)


def _refuse_existing(place: Place, secret: Secret | None) -> None:
    """Checks before a snapshot is taken, which may take long."""
    with contextlib.suppress(NotFound), place.open_reader(secret=secret) as reader:
        if place.storage_dir is None and reader.standing.version_count == 0:
            return  # `init` on the server makes it so
        raise AlreadyExists(
            f"A backup exists at {redacted(place.url)}; it was not changed. Choose another name. "
            "To continue it after a restore, write its URL into backup.lock by hand: "
            '{"backend_url": "URL"}'
        )


def _same_disk(place: Place, path: str) -> bool:
    if place.storage_dir is None:
        return False
    return disks.same_disk(place.storage_dir, path)


@contextmanager
def _snapshot_of(database: str) -> Iterator[Change]:
    """A consistent copy of the database, beside it, for the duration of the block."""
    place = os.path.dirname(os.path.abspath(database))
    with scratch.directory(place, op="take snapshot") as directory:
        path = os.path.join(directory, "snapshot.sqlite3")
        version = copy_database(database, path)
        yield Change(version, DatabaseFile(path), None)
