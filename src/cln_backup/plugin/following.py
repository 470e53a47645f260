"""The follower from the plugin's side: started after `init`, watched, and never waited for."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import BackupError
from cln_backup.node.settings import Alarm, read_settings
from cln_backup.plugin import jsonrpc
from cln_backup.plugin.kept_child import KeptChild
from cln_backup.plugin.manifest import ALARM_TOPIC, FOLLOWER_OPTION, REPLICA_OPTION

if TYPE_CHECKING:
    import select
    from collections.abc import Callable, Mapping

    from cln_backup.backends.contract import Writer
    from cln_backup.compaction.messages import CompactionAnswer
    from cln_backup.follower.helper import FollowerHelper
    from cln_backup.follower.messages import Progress, Said
    from cln_backup.plugin.replicator import Replicator
    from cln_backup.process.channel import Message
    from cln_backup.process.child import Child

REPLICA_NAME: Final = "backup.replica"


class Following:
    """The follower of the node's backup, as a child process that is started again if it ends.

    Attributes:
        alarm: what it found wrong in the backup.
        replica_dir: where the replica is; `None` if nothing follows.
        on_compaction: called with a compaction's number and what it says of it; with 0 and `None`
            when it ends.
    """

    def __init__(
        self, replicator: Replicator, log: Callable[[str, str], None], poll: select.poll
    ) -> None:
        """Registers with `poll`, which reports when to call `go_on`."""
        self._replicator = replicator
        self._log = log
        self._child: KeptChild[Said] = KeptChild(self._start, self._rest, log, poll)
        self._obsolete: list[str] = []
        self._progress: Progress | None = None
        self._state = "off"
        self.alarm: Alarm | None = None
        self._passed_at: float | None = None
        self.on_compaction: Callable[[int, CompactionAnswer | None], None] = _ignore
        self.replica_dir: str | None = None

    def begin(self, options: Mapping[str, object]) -> None:
        """Takes the options, after `init`, and starts the follower; removes a former replica."""
        backend = self._replicator.backend
        if backend is None:
            return
        state = self._replicator.state()
        directory = self._chosen(options, backend)
        if state.replica_dir not in (None, directory):
            self._obsolete = [state.replica_dir or ""]
        self.alarm = state.alarm
        if self.alarm is not None:
            self._log("error", f"The backup still has a fault: {self.alarm.text}")
        self.replica_dir = directory
        if directory is not None:
            from cln_backup.replay.note import read_note

            self._state = "starting"
            if directory != state.replica_dir:
                self._replicator.note(replica_dir=directory)
            noted = read_note(directory)
            if noted is not None:
                self._replicator.proven(noted.proven_version, noted.proven_at, noted.proven_at)
                self._passed_at = noted.proven_at
        elif not self._obsolete:
            return
        self._child.begin()

    def _chosen(self, options: Mapping[str, object], backend: Writer) -> str | None:
        """The replica's directory; `None` if there shall be none."""
        wanted = str(options.get(FOLLOWER_OPTION) or "on")
        if wanted == "off":
            return None
        if wanted != "on":
            self._log("warn", f"{FOLLOWER_OPTION} must be on or off, not {wanted!r}: it is on.")
        if not backend.can_be_followed:
            self._log(
                "info",
                "The backup is not followed: its server's release is too old for that, or it is "
                "the community's. Upgrade the server to have the backup proven.",
            )
            return None
        directory = os.path.abspath(str(options.get(REPLICA_OPTION) or REPLICA_NAME))
        place = backend.place
        is_encrypted = place.storage_dir is not None and place.scratch_dir is None
        if is_encrypted and _is_with(directory, str(place.storage_dir)):
            self._log(
                "warn",
                f"The backup is not followed: its replica, which is not encrypted, would be on "
                f"the disk of the encrypted backup ({directory}). Name another directory with "
                f"{REPLICA_OPTION}.",
            )
            return None
        return directory

    def timeout_ms(self) -> float | None:
        """The time until `ensure` has something to do; `None` if it has nothing."""
        return self._child.timeout_ms()

    def ensure(self) -> None:
        """Starts the follower if it is time to."""
        self._child.ensure()

    def _start(self) -> Child[Said]:
        backend = self._replicator.backend
        assert backend is not None
        from cln_backup.backends.opening import Opening
        from cln_backup.follower.messages import SAYS, Backup, NodeDirectory, Start
        from cln_backup.process.child import Child

        backups = []
        if self.replica_dir is not None:
            opening = Opening(backend.place.url)
            node = None
            with contextlib.suppress(BackupError):  # backup.lock was changed since the start
                node = NodeDirectory(os.getcwd(), read_settings(os.getcwd()).files)
            backups = [Backup("", opening, self.replica_dir, _database(), node)]
        return Child(
            "cln_backup.follower.process",
            Start(backups, self._obsolete),
            SAYS,
            work="follows the backup",
            lowest_priority=True,
        )

    def is_at(self, fd: int) -> bool:
        """Whether this descriptor of `poll` is the follower's."""
        return self._child.is_at(fd)

    def go_on(self) -> None:
        """Handles a message of the follower, or its end."""
        try:
            said = self._child.step()
        except BackupError as error:
            self._end()
            if self.replica_dir is not None or self._obsolete:
                self._child.rest(error)
            return
        if said is not None:
            self._take(said)

    def ask(self, request: Message) -> bool:
        """Sends the follower a request; `False` if it does not run."""
        return self._child.send(request)

    def is_starting(self) -> bool:
        """Whether it will soon be able to help with a compaction."""
        return self._state == "starting"

    def helper(self) -> FollowerHelper | None:
        """The follower as the helper of a compaction; `None` if it cannot help now."""
        if not self._child.runs or self._state != "following" or self.alarm is not None:
            return None
        from cln_backup.follower.helper import FollowerHelper

        return FollowerHelper(self.ask, "")

    def _take(self, said: Said) -> None:
        from cln_backup.follower import messages

        if isinstance(said, messages.CompactionSaid):
            self.on_compaction(said.number, said.said)
        elif isinstance(said, messages.Progress):
            self._state = "following" if said.trouble is None else f"waiting: {said.trouble}"
            if said.trouble is not None and (
                self._progress is None or said.trouble != self._progress.trouble
            ):
                self._log("warn", f"The follower waits, and tries again: {said.trouble}")
            self._progress = said
            self._replicator.proven(said.proven_version, said.proven_at, said.looked_at)
            self._calm(said)
        elif isinstance(said, messages.Alarm):
            self.raise_alarm(said.kind, said.text)
        else:
            self._obsolete.remove(said.directory)
            if self.replica_dir is None:
                self._replicator.note(replica_dir=None)

    def raise_alarm(self, kind: str, text: str) -> None:
        """Tells the operator and other plugins, once, and remembers it for the next start."""
        if self.alarm is not None and (self.alarm.kind, self.alarm.text) == (kind, text):
            return
        self.alarm = Alarm(kind, text, time.time())
        self._passed_at = None if self._progress is None else self._progress.passed_at(kind)
        self._replicator.note(alarm=self.alarm)
        self._log(
            "error",
            f"The backup has a fault: {text} Each change is still stored. Start the node again: "
            "its start makes a fresh snapshot and keeps the earlier history.",
        )
        jsonrpc.write(jsonrpc.notification(ALARM_TOPIC, self.alarm._asdict()))

    def _calm(self, progress: Progress) -> None:
        """Ends an alarm that the follower itself has found to be over."""
        if self.alarm is None:
            return
        passed_at = progress.passed_at(self.alarm.kind)
        if passed_at not in (None, self._passed_at):
            self.alarm = None
            self._replicator.note(alarm=None)
            self._log("info", "The backup replays again; its fault is over.")

    def _end(self) -> None:
        if self._child.runs:
            self._child.end()
            self.on_compaction(0, None)

    def _rest(self, why: str) -> None:
        self._state = f"waiting: {why}"

    def status(self) -> dict[str, object]:
        """The fields of `backup-status`."""
        progress = self._progress
        proof = self._replicator.proof() if self.replica_dir is not None else None
        return {
            "follower": self._state,
            "replica_dir": self.replica_dir,
            "proven_version": proof and proof.version,
            "proven_at": proof and proof.at,
            "proof_lag_s": proof and proof.lag_s,
            "replica_checked_at": progress and progress.checked_at,
            "foreign_key_faults": progress and progress.foreign_key_faults,
            "database_compared_at": progress and progress.compared_at,
            "node_files_at": progress and progress.node_files_at,
            "node_files_trouble": progress and progress.node_files_trouble,
            "alarm": self.alarm and self.alarm._asdict(),
        }

    def close(self) -> None:
        """Ends the follower without waiting for it; the system kills it when this process ends."""
        self._end()
        self._child.close()


def _database() -> str | None:
    """The node's database; `None` if it cannot be found."""
    from cln_backup.node.outside import database_in_use, database_path, lightningd_above

    directory = os.getcwd()
    try:
        named = database_path(directory, read_settings(directory).wallet)
        return database_in_use(lightningd_above(), named)
    except (BackupError, OSError):
        return None


def _ignore(_number: int, _said: CompactionAnswer | None) -> None:
    pass


def _is_with(directory: str, storage_dir: str) -> bool:
    """Whether a directory is in another one, or on its disk and not on the node's."""
    inside = os.path.realpath(directory)
    while True:
        try:
            disk = os.stat(inside).st_dev
            break
        except OSError:
            inside = os.path.dirname(inside)
    try:
        other, ours = os.stat(storage_dir).st_dev, os.stat(os.getcwd()).st_dev
    except OSError:
        return False
    return disk == other != ours or _is_in(os.path.realpath(directory), storage_dir)


def _is_in(directory: str, other: str) -> bool:
    other = os.path.realpath(other)
    return os.path.commonpath((directory, other)) == other
