"""Promotes a standby: fences the old node, and makes the directory the node's.

In this order, so that a killed promotion can be run again, and an old state never gets the name of
a node's database: the replica is brought up to the backup and checked, as a restore is; the old
writer is fenced; the changes that it stored until then are replayed, and everything is checked
again; `backup.lock` is written; last, the database gets its name.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends import place_at, redacted
from cln_backup.model.errors import AlreadyExists, Discontinuity, NotFound, WriterConflict
from cln_backup.node.outside import find_database, require_stopped
from cln_backup.node.settings import LOCK_NAME, Settings, create_settings, read_settings
from cln_backup.operations.restore import target_path
from cln_backup.operations.standby import replica_in
from cln_backup.replay.hand_over import hand_over
from cln_backup.replay.kept import KeptReplica
from cln_backup.replay.kept_directory import remove_replica
from cln_backup.replay.replica import node_id_in
from cln_backup.storage import fsio, interruption, ownership

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.backends.contract import Reader, Writer
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.secrets import Secret


class Promoted(NamedTuple):
    """The result of a promotion.

    Attributes:
        path: of the node's database.
        version: its data version, the backup's last.
        changes: number of changes in the history.
        size_bytes: of the database.
        foreign_key_faults: as in `Restored`.
        node_id: of the node; `None` if the database has none yet.
        lock_made: whether `backup.lock` was written; otherwise it was there.
        lacks_hsm_secret: whether the directory has no `hsm_secret` yet.
    """

    path: str
    version: int
    changes: int
    size_bytes: int
    foreign_key_faults: int
    node_id: str | None
    lock_made: bool
    lacks_hsm_secret: bool


def promote(
    url: str,
    directory: str,
    say: Callable[[str], None],
    *,
    secret: Secret | None = None,
    on_event: OnEvent,
) -> Promoted:
    """Makes a standby's directory the node's: the database at the backup's last change.

    The backup must be reachable, so that no change is left out. The old node, if it still runs,
    halts at its next change, or this refuses because it is alive (`Place.fence`). `say` is told
    each step. After any error, and if it is killed, run it again.

    Raises:
        AlreadyExists: the directory has a database, or a `backup.lock` of another backup.
        NodeRunning: lightningd runs on the directory.
        BadSettings: lightningd's configuration there names another database.
        WriterConflict: the old node is alive, or the standby is still followed by a process.
        Discontinuity: the backup belongs to another node than the database.
        NotFound, Damaged, ReplayFailed, StorageError: no database was put in place.
    """
    place = place_at(url)
    path = target_path(os.path.join(directory, ""))
    find_database(directory, None)  # raises if the configuration names another path
    require_stopped(directory, None)
    has_lock = _has_lock(url, directory)
    with (
        interruption.deferred(),
        ownership.of_node(directory),
        contextlib.closing(_replica(directory)) as replica,
    ):
        say("Bringing the replica up to the backup")
        with place.open_reader(secret=secret, on_event=on_event) as reader:
            _catch_up(replica, reader)
        say("Fencing the old node")
        with (
            place.fence(secret=secret, on_event=on_event) as writer,
            place.open_reader(secret=secret, on_event=on_event) as reader,
        ):
            faults = _catch_up(replica, reader)
            _require_all(replica, reader, writer)
            node_id = _require_same_node(replica, reader, writer)
            say(f"Putting the database in place, at data version {replica.version}")
            target_path(directory)
            if not has_lock:
                create_settings(directory, Settings(url))
            version, changes = replica.version, reader.standing.position.changes
            with interruption.held():
                size = hand_over(replica, path)
                interruption.finished()
    remove_replica(replica_in(directory))
    lacks_hsm_secret = not os.path.lexists(os.path.join(directory, "hsm_secret"))
    return Promoted(path, version, changes, size, faults, node_id, not has_lock, lacks_hsm_secret)


def _replica(directory: str) -> KeptReplica:
    try:
        return KeptReplica.open(replica_in(directory))
    except WriterConflict as error:
        raise WriterConflict(
            f"{error} Nothing was changed. Stop the standby first (Ctrl-C, or systemctl stop)."
        ) from None


def _has_lock(url: str, directory: str) -> bool:
    """Whether `backup.lock` is there; it must name this backup."""
    path = os.path.join(directory, LOCK_NAME)
    if fsio.kind_at(path, op="read settings") is None:
        return False
    named = read_settings(directory).backend_url
    if named.partition("?")[0] != url.partition("?")[0]:
        raise AlreadyExists(
            f"{path} names another backup, {redacted(named)}. Nothing was changed. Find out whose "
            "it is, and move it away."
        )
    return True


def _catch_up(replica: KeptReplica, reader: Reader) -> int:
    """Replays the whole backup, and checks it; returns the number of foreign key faults."""
    if reader.standing.head is None:
        raise NotFound("Nothing to promote: the backup is empty.")
    replica.catch_up(reader)
    replica.commit_head()
    return replica.check()


def _require_all(replica: KeptReplica, reader: Reader, writer: Writer) -> None:
    """Makes sure that the replica has everything that the fenced backup has."""
    there, seen, here = writer.standing.position, reader.standing.position, replica.position
    if here is None or not here[:2] == seen[:2] == there[:2] or here.is_other_history(there):
        raise WriterConflict(
            f"The backup was written to after the old node was fenced: it is at data version "
            f"{there.version}, and was read up to {seen.version}. No database was put in place. "
            "Find out which process wrote; then run this again."
        )


def _require_same_node(replica: KeptReplica, reader: Reader, writer: Writer) -> str | None:
    """Makes sure that the database is of the node that the backup belongs to; returns its id."""
    node_id = node_id_in(replica.connection)
    noted = reader.node_id
    if node_id is not None:
        writer.claim(node_id)
    if None not in (noted, node_id) and noted != node_id:
        raise Discontinuity(
            f"The backup belongs to the node {noted}, but the database in it is of the node "
            f"{node_id}. No database was put in place."
        )
    return node_id
