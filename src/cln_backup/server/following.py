"""Follows the server's backups: one process at the lowest priority keeps a replica of each.

The server never waits for it. If it ends, it is started again, after growing pauses.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from cln_backup.backends import place_at
from cln_backup.backends.opening import Opening
from cln_backup.backends.paths import require_outside
from cln_backup.follower.helper import FollowerHelper
from cln_backup.follower.messages import (
    SAYS,
    Alarm,
    Backup,
    CompactionSaid,
    Progress,
    Removed,
    Said,
    Start,
)
from cln_backup.model.errors import BackupError
from cln_backup.process.child import Child
from cln_backup.replay.kept_directory import remove_replica
from cln_backup.server.preparing import FollowerSide
from cln_backup.server.served import served_of
from cln_backup.storage import directories

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cln_backup.compaction.messages import CompactionAnswer
    from cln_backup.process.channel import Message
    from cln_backup.server.node import Node
    from cln_backup.server.served import Served

OFF: Final = "off"

_LOOK_S: Final = 1.0
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 300.0
_RELIABLE_S: Final = 60.0
_END_S: Final = 5.0
_LEAVE_S: Final = 0.5

_log = logging.getLogger("cln_backup.server")


class NotFollowed(Exception):
    """Why a backup is not followed."""


def replica_of(url: str, name: str, chosen: str | None) -> str:
    """The directory for a backup's replica: in the chosen one, or beside the backup.

    Raises:
        NotFollowed: it would be inside a backup, or without encryption where an encrypted one is.
    """
    place = place_at(url)
    path = url.partition(":")[2].removeprefix("//")
    if place.can_encrypt:  # a URL with options
        path = path.partition("?")[0]
    beside, own_name = os.path.split(os.path.realpath(path))
    is_encrypted = place.scratch_dir is None
    if chosen is None:
        if is_encrypted:
            raise NotFollowed(
                "it is encrypted, and its replica would not be. To follow it, name a directory "
                "elsewhere with --replica-dir"
            )
        return os.path.join(beside, f"replica-of-{own_name}")
    directory = os.path.realpath(chosen)
    if is_encrypted and os.path.commonpath((directory, beside)) == beside:
        raise NotFollowed(
            f"it is encrypted, and {chosen} is where it is: its replica would be there without "
            "encryption. Choose another directory with --replica-dir"
        )
    try:
        require_outside(directory)
    except BackupError as error:
        raise NotFollowed(str(error)) from None
    return os.path.join(directory, name or own_name)


class Following:
    """Starts the follower for the nodes whose backups are open, and takes its reports over."""

    def __init__(self, nodes: Mapping[str, Node], chosen: str | None) -> None:
        """`chosen` is the directory for the replicas; `None` for one beside each backup.

        It is made if it does not exist. Raises `StorageError`.
        """
        if chosen is not None:
            directories.make_with_parents(chosen, op="make directory for replicas")
        self._nodes = nodes
        self._chosen = chosen
        self._places: dict[tuple[str, str], str | None] = {}
        self._followed: dict[str, Backup] = {}
        self._restarts: dict[str, int] = {}
        self._answers: dict[str, tuple[int, SimpleQueue[CompactionAnswer | None]]] = {}
        self._child_lock = threading.Lock()
        self._child: Child[Said] | None = None
        self._start_at = self._started_at = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="following", daemon=True)

    def start(self) -> None:
        """Begins, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the follower; it loses nothing."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._step()
            except BackupError as error:
                self._restart_later(str(error))
            except Exception:  # noqa: BLE001 - it must not touch the nodes
                _log.exception("The follower stops: a bug in cln-backup; please report it")
                break
        self._end(_LEAVE_S)

    def _step(self) -> None:
        wanted = self._wanted()
        self._remove_replaced(wanted)
        if wanted != self._followed:
            self._end()
            self._remove_former(wanted)
            self._followed, self._start_at = wanted, 0.0
        if self._child is None and wanted and time.monotonic() >= self._start_at:
            self._start()
        self._receive()
        for node in list(served_of(self._nodes).values()):
            if node.last is not None:
                node.proof.look_at(node.last.version)

    def _wanted(self) -> dict[str, Backup]:
        """The backups to follow now: those that are open, and whose replica has a place."""
        nodes = [node for node in list(served_of(self._nodes).values()) if node.last is not None]
        found = {}
        for node in nodes:
            directory = self._place_of(node)
            if directory is not None:
                found[node.name] = Backup(node.name, Opening(node.url), directory)
                node.follower = partial(self._side_for, node.name)
        return found

    def _place_of(self, node: Served) -> str | None:
        key = node.name, node.url
        if key not in self._places:
            try:
                self._places[key] = replica_of(node.url, node.name, self._chosen)
            except (NotFollowed, BackupError) as error:
                self._places[key] = None
                node.say(logging.WARNING, f"The backup is not followed: {error}")
        return self._places[key]

    def _remove_former(self, wanted: dict[str, Backup]) -> None:
        """Removes the replicas of backups that are no longer in the list of nodes."""
        kept = {backup.directory for backup in wanted.values()}
        for name, backup in self._followed.items():
            if name not in self._nodes and backup.directory not in kept:
                remove_replica(backup.directory)

    def _remove_replaced(self, wanted: dict[str, Backup]) -> None:
        """Removes the replicas of backups that were started over.

        The digest of a history would tell the two apart, but a `file:` backup has none.
        """
        for name, backup in wanted.items():
            restarts = served_of(self._nodes)[name].restarts
            if restarts != self._restarts.get(name, 0):
                self._end()
                self._start_at = 0.0
                remove_replica(backup.directory)
                self._restarts[name] = restarts

    def _start(self) -> None:
        self._started_at = time.monotonic()
        self._child = Child[Said](
            "cln_backup.follower.process",
            Start(list(self._followed.values()), []),
            SAYS,
            work="follows the backups",
            lowest_priority=True,
        )

    def _receive(self) -> None:
        """Takes the follower's messages over, for a second."""
        if self._child is None:
            self._stopping.wait(_LOOK_S)
            return
        poll = select.poll()
        poll.register(self._child, select.POLLIN)
        until = time.monotonic() + _LOOK_S
        while (left_s := until - time.monotonic()) > 0 and not self._stopping.is_set():
            if poll.poll(left_s * 1000):
                said = self._child.step()
                if said is not None:
                    self._take(said)

    def _take(self, said: Said) -> None:
        node = None if isinstance(said, Removed) else served_of(self._nodes).get(said.name)
        if node is None:
            return
        if isinstance(said, Progress):
            before = node.proof.progress
            node.proof.take(said)
            if said.trouble is not None and (before is None or before.trouble != said.trouble):
                _log.warning("%sThe follower tries again: %s", _of(node.name), said.trouble)
            if before is None and said.proven_at is not None:
                _log.info("%sProven up to version %d", _of(node.name), said.proven_version)
        elif isinstance(said, CompactionSaid):
            number, answers = self._answers.get(said.name, (0, None))
            if answers is not None and number == said.number:
                answers.put(said.said)
            else:
                answer = type(said.said).__name__
                _log.debug(
                    "%sIgnored %s about a compaction that was given up", _of(node.name), answer
                )
        elif isinstance(said, Alarm):
            node.proof.raise_alarm(said)
            _log.critical("%sALARM: %s", _of(node.name), said.text)

    def _restart_later(self, why: str) -> None:
        self._end()
        if time.monotonic() - self._started_at > _RELIABLE_S:
            self._pause_s = _FIRST_PAUSE_S
        self._start_at = time.monotonic() + self._pause_s
        _log.warning("%s The follower starts again in %.0f seconds", why, self._pause_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _end(self, end_s: float = _END_S) -> None:
        """Ends the follower; after this time it is killed, which loses nothing."""
        with self._child_lock:
            child, self._child = self._child, None
            answers, self._answers = self._answers, {}
        for _, queue in answers.values():
            queue.put(None)
        if child is not None:
            with contextlib.suppress(OSError):
                child.close()
            child.wait(end_s)

    def _ask(self, request: Message) -> bool:
        """Sends the follower a request, from any thread; `False` if it does not run."""
        with self._child_lock:
            if self._child is None:
                return False
            try:
                self._child.send(request)
            except BackupError:  # it has ended; `_receive` will hear of it
                return False
            return True

    def _side_for(self, name: str) -> FollowerSide | None:
        """The follower for a compaction of a backup, from any thread; `None` if it cannot help."""
        node = served_of(self._nodes).get(name)
        with self._child_lock:
            if self._child is None or node is None or not node.proof.is_followed():
                return None
            answers: SimpleQueue[CompactionAnswer | None] = SimpleQueue()
            helper = FollowerHelper(self._ask, name)
            self._answers[name] = helper.number, answers
        return FollowerSide(helper, answers)


def _of(name: str) -> str:
    return f"{name}: " if name else ""
