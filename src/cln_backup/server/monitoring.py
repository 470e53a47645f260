"""The monitor from the server's side: one process for alarms and the page of all its nodes."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Final

import msgspec

from cln_backup.model.errors import BackupError, BadSettings
from cln_backup.monitor.messages import Start, Told
from cln_backup.monitor.receivers import check
from cln_backup.monitor.state import NodeState  # noqa: TC001
from cln_backup.process.channel import Message
from cln_backup.process.child import Child
from cln_backup.server.node_state import state_of
from cln_backup.storage import directories

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cln_backup.monitor.messages import PageAt, Receivers
    from cln_backup.server.node import Node

_TELL_S: Final = 5.0
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 300.0
_STOP_S: Final = 5.0
"""How long the end of the server waits for a monitor that does not read."""

_log = logging.getLogger("cln_backup.server")


class Monitoring:
    """Tells the monitor how the nodes are; the nodes never wait for it."""

    def __init__(
        self,
        nodes: Mapping[str, Node],
        receivers: Receivers,
        state_dir: str | None,
        page: PageAt | None = None,
    ) -> None:
        """`state_dir` is made if it does not exist; by default the one that systemd gives.

        Raises:
            BadSettings: a receiver is not valid, there is no directory, or a package is missing.
            StorageError.
        """
        check(receivers)
        if page is not None:
            from cln_backup.monitor.page.render import check as check_page

            check_page()
        self._directory = _directory(state_dir)
        self._nodes = nodes
        self._receivers = receivers
        self._page = page
        self._seen: dict[str, float] = {}
        self._began_s = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitoring", daemon=True)

    def start(self) -> None:
        """Begins, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Lets the monitor deliver what it has; it ends by itself."""
        self._stopping.set()
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            try:
                self._watch()
            except BackupError as error:
                _log.warning("%s It starts again in %.0f s", error, pause_s)
                self._stopping.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            except Exception:  # noqa: BLE001 - it must not touch the nodes
                _log.exception(
                    "No alarms are sent, and no page is served any more: a bug in cln-backup; "
                    "please report it"
                )
                return

    def _watch(self) -> None:
        """Starts the process and reports to it until the server stops. Raises `BackupError`."""
        title = f"backup server {os.uname().nodename}"
        child = Child(
            "cln_backup.monitor.process",
            Start(title, self._directory, self._receivers, self._states(), self._page),
            (Message,),
            work="sends alarms, and serves the page",
            lowest_priority=True,
        )
        poll = select.poll()
        poll.register(child.fileno(), select.POLLIN)
        try:
            while not self._stopping.wait(_TELL_S):
                while poll.poll(0):
                    child.step()
                if not child.unread_bytes():
                    child.send(Told(self._states()))
            child.release()
        except BackupError:
            child.close()
            raise

    def _states(self) -> dict[str, NodeState]:
        return {name: self._state_of(node) for name, node in dict(self._nodes).items()}

    def _state_of(self, node: Node) -> NodeState:
        state, now_s = state_of(node), time.monotonic()
        if state.connected:
            self._seen[node.name] = now_s
        if not state.version_count:  # it was never used
            return msgspec.structs.replace(state, connected=None)
        away_s = now_s - self._seen.get(node.name, self._began_s)
        return msgspec.structs.replace(state, away_s=away_s)


def _directory(chosen: str | None) -> str:
    """The directory for what the monitor keeps; made if it does not exist."""
    directory = chosen or os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if not directory:
        raise BadSettings(
            "Give a directory with --state-dir, where the server keeps which alarms it has sent, "
            "and the figures of the page."
        )
    directories.make_with_parents(directory, op="make directory for the server's state")
    return os.path.abspath(directory)
