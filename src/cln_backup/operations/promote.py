"""Promotes a standby: fences the old node, and makes the directory the node's.

In this order, so that a killed promotion can be run again, and an old state never gets the name of
a node's database: the operator or a server vouches for the backup; the replica is brought up to it
and checked, as a restore is; the old writer is fenced; the changes that it stored until then are
replayed, and everything is checked again; `backup.lock` is written; last, the database gets its
name.
"""

from __future__ import annotations

import contextlib
import os
import time
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
    is_original: bool = False,
    at_least: int | None = None,
    secret: Secret | None = None,
    on_event: OnEvent,
) -> Promoted:
    """Makes a standby's directory the node's: the database at the backup's last change.

    The backup must be reachable, so that no change is left out. The old node, if it still runs,
    halts at its next change, or this refuses because it is alive (`Place.fence`). `say` is told
    each step. After any error, and if it is killed, run it again.

    A complete copy of a backup on a disk looks like the backup itself, so the caller must know;
    likewise of a database that was restored, or promoted itself, since the last writer opened it.

    Args:
        url: of the backup.
        directory: of the standby.
        say: is told each step.
        is_original: the old node wrote to the backup at this very place (see `Reader.is_original`).
        at_least: a data version that the old node has certainly had.
        secret: unlocks the backup.
        on_event: is told what its backend notices.

    Raises:
        AlreadyExists: the directory has a database, or a `backup.lock` of another backup.
        NodeRunning: lightningd runs on the directory.
        BadSettings: lightningd's configuration there names another database.
        WriterConflict: the old node is alive, or the standby is still followed by a process.
        Discontinuity: the backup may be an old copy, or is older than `at_least`; or it belongs to
            another node than the database.
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
            _require_newest(reader, at_least, is_original=is_original)
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


def _require_newest(reader: Reader, at_least: int | None, *, is_original: bool) -> None:
    """Makes sure that the backup is not an older copy, as far as the operator knows more."""
    version, last = reader.version, reader.last_change
    if reader.standing.head is None:
        return  # refused later
    if at_least is not None and version < at_least:
        raise Discontinuity(
            f"The backup is too old: it is at data version {version}, and the old node had "
            f"{at_least}. It is an earlier copy, or not this node's. Nothing was changed. A node "
            "that starts on an older state loses funds. Find the backup that the node wrote to."
        )
    if reader.is_original or is_original or at_least is not None:
        return
    when = "" if last.at is None else f", stored {_ago(time.time() - last.at)}"
    if last.by_file and when:
        when += " by the time of the file, which a copy may have changed"
    raise Discontinuity(
        "Cannot tell whether the backup is the one that the old node wrote to, or an older copy: "
        f"its last change is data version {version}{when}. Nothing was changed. A node that starts "
        "on an older state loses funds. Add --original if the old node wrote to this very place. "
        "Add --at-least VERSION if you know the last data version of the old node: its database "
        "or its log has it, and docs/tasks/standby.md says how to find it."
    )


def _ago(seconds: float) -> str:
    if seconds < 120:
        return "in the last two minutes"
    for name, length in (("days", 86_400), ("hours", 3600)):
        if seconds >= 2 * length:
            return f"{int(seconds / length)} {name} ago"
    return f"{int(seconds / 60)} minutes ago"


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
