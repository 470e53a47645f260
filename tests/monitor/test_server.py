"""Alarms of a server about its nodes, and a ping while all is well."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from cln_backup.backends import create_backend
from cln_backup.model.errors import BadSettings
from cln_backup.model.health import Level
from cln_backup.monitor.messages import Receivers
from cln_backup.monitor.state import NodeState, findings
from cln_backup.process.child import Child
from cln_backup.server import monitoring
from cln_backup.server.monitoring import Monitoring
from tests.histories import append, transaction
from tests.monitor.receiver import HttpReceiver
from tests.socket.serving import server_here, server_process
from tests.waiting import WAIT_S, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from cln_backup.process.channel import Message


def test_server_tells_of_a_backup_that_does_not_replay(tmp_path: Path) -> None:
    url, state = f"dir://{tmp_path}/node", tmp_path / "state"
    with (
        HttpReceiver() as receiver,
        server_process(
            *("--alarm-webhook", f"{receiver.url}/hook", "--alarm-ping", f"{receiver.url}/ping"),
            *("--state-dir", str(state), url),
            follows=True,
        ) as server,
    ):
        create_backend(server.url, None)
        append(server.url, [transaction(1, "CREATE TABLE vars (name TEXT, intval INTEGER)")])
        wait_for(lambda: receiver.gets, missing=lambda: server.said)
        (alarm,) = receiver.wait_for_posts(1, server.said)
        assert (alarm["code"], alarm["level"]) == ("replay", "bad")
        assert alarm["source"].startswith("backup server ")
        assert server.terminate() == 0
        assert receiver.url not in "".join(server.said)
    assert (state / "backup.alarms").exists()


def test_node_that_was_never_there_is_away_but_an_unused_place_is_not(tmp_path: Path) -> None:
    receivers = Receivers(pings=("http://127.0.0.1:1/",))
    with server_here() as server:
        used, unused = (server.add(f"dir://{tmp_path}/{name}") for name in ("used", "unused"))
        create_backend(used, None)
        append(used, [transaction(1)])
        server.served(unused)
        # A server may hear of the end of a connection after its client.
        wait_for(lambda: not any(node.connections() for node in server.nodes.values()))
        monitoring = Monitoring(server.nodes, receivers, str(tmp_path / "state"))
        monitoring._began_s -= 700
        found = {
            name: [(each.code, each.level) for each in findings(state, state.at)]
            for name, state in monitoring._states().items()
        }
    well = [("not-protected", Level.GOOD)]
    assert list(found.values()) == [[("node-away", Level.WARNING)], well]


@pytest.mark.parametrize("url", ["ftp://host", "nothing"])
def test_invalid_receiver_is_refused_before_the_server_listens(tmp_path: Path, url: str) -> None:
    with pytest.raises(BadSettings):
        Monitoring({}, Receivers(webhooks=(url,)), str(tmp_path))


def test_monitor_that_is_stopped_does_not_keep_the_server_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Child[Message]] = []

    def start(*arguments: Any, **options: Any) -> Child[Message]:
        started.append(Child(*arguments, **options))
        return started[0]

    monkeypatch.setattr(monitoring, "Child", start)
    monkeypatch.setattr(monitoring, "_TELL_S", 0.05)
    monkeypatch.setattr(monitoring, "_STOP_S", 0.1)
    many = {str(number): NodeState(at=0.0, backend_url="x" * 1000) for number in range(300)}
    watching = Monitoring({}, Receivers(pings=("http://127.0.0.1:1/",)), str(tmp_path / "state"))
    monkeypatch.setattr(watching, "_states", lambda: many)
    watching.start()
    wait_for(lambda: started)
    os.kill(started[0].pid, signal.SIGSTOP)
    try:
        wait_for(started[0].unread_bytes)
        ending = threading.Thread(target=watching.stop, daemon=True)
        ending.start()
        ending.join(WAIT_S)
        assert not ending.is_alive()
    finally:
        os.kill(started[0].pid, signal.SIGKILL)
        watching._thread.join()


def test_server_without_a_state_directory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    with pytest.raises(BadSettings, match="--state-dir"):
        Monitoring({}, Receivers(pings=("http://127.0.0.1:1/",)), None)
