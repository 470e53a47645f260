"""The plugin as lightningd runs it, with its backup on a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from cln_backup.backends import create_backend
from tests.histories import payments, started_node, told, told_by, wearing_payments
from tests.socket.proxies import Cut, proxy
from tests.socket.serving import server_process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cln_backup.model.change import Change

PLUGIN = os.path.join(os.path.dirname(sys.executable), "cln-backup")


class Node:
    """A node's messages to the plugin, and the answers."""

    def __init__(self, directory: Path) -> None:
        self._plugin = subprocess.Popen(
            [PLUGIN], cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._pending = b""
        self.logged: list[str] = []

    def call(self, method: str, params: dict[str, Any]) -> Any:
        assert self._plugin.stdin is not None
        fields = {"jsonrpc": "2.0", "id": f"cln:{method}#1", "method": method, "params": params}
        self._plugin.stdin.write(json.dumps(fields).encode() + b"\n\n")
        while True:
            message = self._next()
            if message.get("method") == "log":
                self.logged.append(message["params"]["message"])
            elif "id" in message:
                return message.get("result", message.get("error"))

    def _next(self) -> Any:
        assert self._plugin.stdout is not None
        while b"\n\n" not in self._pending:
            data = self._plugin.stdout.read(1 << 16)
            assert data, "the plugin has ended"
            self._pending += data
        text, _, self._pending = self._pending.partition(b"\n\n")
        return json.loads(text)

    def write(self, change: Change) -> Any:
        assert change.transaction is not None
        params = {"data_version": change.version, "writes": list(change.transaction)}
        return self.call("db_write", params)

    def close(self) -> None:
        assert self._plugin.stdin is not None
        assert self._plugin.stdout is not None
        self._plugin.stdin.close()
        self._plugin.wait()
        self._plugin.stdout.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    directory = tmp_path / "bitcoin"
    directory.mkdir()
    return directory


def _point(home: Path, url: str) -> None:
    (home / "backup.lock").write_text(json.dumps({"backend_url": url}))


def test_node_goes_on_when_the_server_comes_back(tmp_path: Path, home: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    with server_process(url) as server:
        _point(home, server.url)
        node = Node(home)
        for change in [*started_node(), *payments(4, 8)]:
            assert node.write(change) == {"result": "continue"}
        server.kill()
        answers: list[Any] = []
        waiting = threading.Thread(target=lambda: answers.append(node.write(payments(8, 9)[0])))
        waiting.start()
        time.sleep(0.5)
        assert not answers
        server.start()
        waiting.join()
        assert answers == [{"result": "continue"}]
        node.close()
    assert any("The node waits" in line for line in node.logged)
    assert any("answers again" in line for line in node.logged)
    assert told_by(url) == told([*started_node(), *payments(4, 9)])


def test_node_is_halted_when_the_server_stays_away(tmp_path: Path, home: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    with server_process(url) as server:
        _point(home, f"{server.url}?deadline=1")
        node = Node(home)
        for change in started_node():
            assert node.write(change) == {"result": "continue"}
        server.terminate()
        assert node.write(payments(4, 5)[0])["result"] == "halt"
        assert any("could not be reached for 1 seconds" in line for line in node.logged)
        node.close()
        node = Node(home)
        assert node.write(payments(4, 5)[0])["result"] == "halt"
        node.close()
    assert told_by(url) == told(started_node())


def test_head_that_the_node_did_not_commit_is_dropped_on_the_server(
    tmp_path: Path, home: Path
) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    with server_process(url) as server:
        _point(home, server.url)
        node = Node(home)
        for change in [*started_node(), *payments(4, 6)]:
            node.write(change)
        node.close()
        node = Node(home)
        again = payments(5, 6)[0]
        assert node.write(again) == {"result": "continue"}
        assert any("Last changes not applied" in line for line in node.logged)
        node.close()
    assert (tmp_path / "node.bkp.dropped-5").exists()
    assert told_by(url) == told([*started_node(), *payments(4, 6)])


def test_server_compacts_while_the_node_writes(tmp_path: Path, home: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    with server_process(url) as server:
        _point(home, server.url)
        node = Node(home)
        for change in [*started_node(), *wearing_payments(4, 40)]:
            node.write(change)
        figures = node.call("backup-compact", {})
        assert figures["after"]["version_count"] == 2
        for change in payments(40, 44):
            assert node.write(change) == {"result": "continue"}
        status = node.call("backup-status", {})
        assert (status["version"], status["version_count"]) == (43, 6)
        assert status["backend_url"] == server.url
        node.close()
    assert told_by(url)[-1] == told(payments(43, 44))[0]


def test_server_of_one_connection_compacts_over_that_of_the_node(
    tmp_path: Path, home: Path
) -> None:
    """The community's server serves only the node; a second process waited in vain."""
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    history = [*started_node(), *wearing_payments(4, 40)]
    with server_process(url) as server, proxy(server.port, _as_it_is) as between:
        _point(home, f"socket:127.0.0.1:{between.port}?protocol=1")
        node = Node(home)
        for change in history:
            node.write(change)
        opened = between.connections
        figures = node.call("backup-compact", {})
        assert figures["before"]["version_count"] == len(history)
        assert figures["after"]["version_count"] == 2
        assert any("serves one connection at a time" in line for line in node.logged)
        for change in payments(40, 44):
            assert node.write(change) == {"result": "continue"}
        assert node.call("backup-compact", {})["after"]["version_count"] == 2
        assert between.connections == opened
        node.close()
        node = Node(home)  # killed before it committed
        assert node.write(payments(43, 44)[0]) == {"result": "continue"}
        assert any("Last changes not applied" in line for line in node.logged)
        node.close()
    assert told_by(url)[-1] == told(payments(43, 44))[0]


def test_compaction_that_an_old_server_fails_at_does_no_harm(tmp_path: Path, home: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    with server_process(url) as server:
        cut = threading.Event()
        with proxy(server.port, lambda _: _cut_at(cut)) as between:
            _point(home, f"socket:127.0.0.1:{between.port}?protocol=1")
            node = Node(home)
            for change in [*started_node(), *payments(4, 9)]:
                node.write(change)
            cut.set()
            assert "the server's log says" in node.call("backup-compact", {})["message"]
            cut.clear()
            for change in payments(9, 12):
                assert node.write(change) == {"result": "continue"}
            node.close()
    assert told_by(url) == told([*started_node(), *payments(4, 12)])


def _as_it_is(_: int) -> Callable[[int, bytes], bytes]:
    return lambda _, data: data


def _cut_at(cut: threading.Event) -> Callable[[int, bytes], bytes]:
    def treat(_: int, data: bytes) -> bytes:
        if cut.is_set():
            raise Cut(b"")
        return data

    return treat
