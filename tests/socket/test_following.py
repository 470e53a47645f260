"""A server that follows its backups, and says how far they are proven."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend
from cln_backup.follower.messages import Alarm, Progress
from cln_backup.server.following import Following, NotFollowed, replica_of
from cln_backup.server.proof import Proof
from cln_backup.server.served import Served
from cln_backup.storage import scratch
from tests import programs
from tests.format2.small import url_of
from tests.histories import append, payments, started_node, transaction
from tests.socket.serving import server_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.socket.serving import ServerProcess

_PATIENCE_S = 300.0


def _backup(url: str) -> str:
    create_backend(url, None)
    append(url, [*started_node(), *payments(4, 10)])
    return url


@contextlib.contextmanager
def _following(*arguments: str) -> Iterator[tuple[ServerProcess, str]]:
    """A server that follows, and the address of its metrics."""
    pytest.importorskip("prometheus_client")
    with server_process("--metrics", "127.0.0.1:0", *arguments, follows=True) as server:
        found = re.search(r"Metrics at (\S+)", "".join(server.said))
        assert found is not None
        yield server, found[1]


def _metrics(address: str, node: str = "") -> dict[str, float]:
    with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310 - it is http
        text = answer.read().decode()
    found = re.findall(r'^cln_backup_(\w+)\{node="([^"]*)"\} (\S+)$', text, re.MULTILINE)
    return {name: float(value) for name, of, value in found if of == node}


def _wait_for(address: str, version: int, node: str = "") -> dict[str, float]:
    """The metrics, once everything up to a version is proven."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        metrics = _metrics(address, node)
        if metrics.get("proven_version", 0) >= version:
            return metrics
        assert time.monotonic() < until, metrics
        time.sleep(0.1)


def _follower_of(server: ServerProcess) -> int:
    """The process id of the server's follower."""
    tasks = Path(f"/proc/{server.process.pid}/task")
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        for children in tasks.glob("*/children"):
            for pid in children.read_text().split():
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"follower" in command:
                    return int(pid)
        time.sleep(0.05)
    raise AssertionError("there is no follower")


@pytest.mark.parametrize("scheme", ["dir", "file"])
def test_proves_what_is_stored_also_after_its_follower_was_killed(
    tmp_path: Path, scheme: str
) -> None:
    with _following(_backup(f"{scheme}://{tmp_path}/node")) as (server, address):
        metrics = _wait_for(address, 9)
        assert metrics["head_version"] == metrics["proven_version"] == 9
        assert metrics["alarm"] == metrics["proof_lag_seconds"] == 0
        assert abs(metrics["proven_timestamp_seconds"] - time.time()) < 3600
        append(server.url, payments(10, 12))
        _wait_for(address, 11)
        shown = json.loads(programs.run("status", "--json", server.url).stdout)
        assert shown["proven_version"] == 11
        assert abs(shown["proven_at"] - time.time()) < 3600
        os.kill(_follower_of(server), signal.SIGKILL)
        append(server.url, payments(12, 14))
        _wait_for(address, 13)
        assert server.terminate() == 0
    said = "".join(server.said)
    assert "Proven up to version 9" in said
    assert "The follower starts again in 1 seconds" in said
    replica = tmp_path / "replica-of-node"
    assert oct(replica.stat().st_mode)[-3:] == "700"
    assert (replica / "replica.sqlite3").exists()


def test_change_that_does_not_replay_is_an_alarm(tmp_path: Path) -> None:
    url = _backup(f"dir://{tmp_path}/node")
    with _following("--log-mode", "json", url) as (server, address):
        _wait_for(address, 9)
        append(server.url, [transaction(10, "INSERT INTO nowhere VALUES (1)")])
        until = time.monotonic() + _PATIENCE_S
        while not _metrics(address)["alarm"]:
            assert time.monotonic() < until
            time.sleep(0.2)
        metrics = _metrics(address)
        assert metrics["proven_version"] == 9
        assert metrics["proof_lag_seconds"] > 0
        # The node is not touched by it.
        append(server.url, payments(11, 12))
    lines = [json.loads(line) for line in server.said if line.startswith("{")]
    (alarm,) = [line["message"] for line in lines if line["level"] == "critical"]
    assert alarm.startswith("ALARM: ")
    assert "nowhere" not in alarm


def test_list_of_nodes_that_is_read_again_changes_what_is_followed(tmp_path: Path) -> None:
    nodes = tmp_path / "nodes"
    lines = [f"{name} {_backup(f'dir://{tmp_path}/{name}')} {'0' * 64}\n" for name in ("a", "b")]
    nodes.write_text(lines[0])
    replicas = tmp_path / "replicas"
    with _following("--nodes", str(nodes), "--replica-dir", str(replicas)) as (server, address):
        _wait_for(address, 9, "a")
        nodes.write_text("".join(lines))
        server.process.send_signal(signal.SIGHUP)
        _wait_for(address, 9, "b")
        nodes.write_text(lines[1])
        server.process.send_signal(signal.SIGHUP)
        until = time.monotonic() + _PATIENCE_S
        while (replicas / "a").exists():
            assert time.monotonic() < until
            time.sleep(0.1)
        assert (replicas / "b" / "replica.sqlite3").exists()
        assert _metrics(address, "a") == {}


def test_replica_is_never_where_an_encrypted_backup_is(tmp_path: Path) -> None:
    url = url_of("encrypted", tmp_path)
    create_backend(url, None)
    with pytest.raises(NotFollowed, match="it is encrypted"):
        replica_of(url, "", None)
    for inside in (tmp_path, tmp_path / "replicas", tmp_path / "node" / "replicas"):
        with pytest.raises(NotFollowed, match="it is encrypted"):
            replica_of(url, "", str(inside))
    elsewhere = str(tmp_path.parent / "replicas")
    assert replica_of(url, "", elsewhere) == f"{elsewhere}/node"
    assert replica_of(url, "alice", elsewhere) == f"{elsewhere}/alice"


def test_replica_of_an_open_backup_is_beside_it_or_where_it_is_told(tmp_path: Path) -> None:
    url = _backup(f"dir://{tmp_path}/node")
    assert replica_of(url, "", None) == f"{tmp_path}/replica-of-node"
    assert replica_of(f"file://{tmp_path}/a.bkp", "alice", None) == f"{tmp_path}/replica-of-a.bkp"
    assert replica_of(url, "alice", str(tmp_path / "x")) == f"{tmp_path}/x/alice"
    with pytest.raises(NotFollowed, match="inside the backup"):
        replica_of(url, "", str(tmp_path / "node" / "replicas"))


def test_disk_that_is_nearly_full_is_left_to_the_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = Served("alice", _backup(f"dir://{tmp_path}/node"), None)
    node.open()
    following = Following({"alice": node}, None)
    room_bytes = [0]
    monkeypatch.setattr(scratch, "room_bytes", lambda *_, **__: room_bytes[0])
    monkeypatch.setattr("cln_backup.server.following._ROOM_EVERY_S", 0.0)
    assert list(following._wanted()) == ["alice"]
    for room, is_wanted in ((-1, False), (1, False), (1 << 30, True), (1, True)):
        room_bytes[0] = room
        assert bool(following._wanted()) == is_wanted
    assert caplog.text.count("nearly full") == 1
    node.close()


def test_lag_begins_with_the_first_change_that_is_not_proven() -> None:
    proof = Proof()
    assert proof.lag_s() == 0
    proof.look_at(5)
    time.sleep(0.01)
    first = proof.lag_s()
    assert first > 0
    proof.take(Progress("", 5, 1.0, 1.0))
    assert proof.lag_s() == 0
    proof.look_at(7)
    proof.look_at(9)
    assert 0 < proof.lag_s() < first + _PATIENCE_S
    proof.look_at(8)  # the head was dropped
    proof.take(Progress("", 8, 2.0, 2.0))
    assert proof.lag_s() == 0
    for version in range(9, 5000):
        proof.look_at(version)
    proof.take(Progress("", 4999, 3.0, 3.0))
    assert proof.lag_s() == 0


def test_alarm_ends_with_a_replay_up_to_the_head_after_it() -> None:
    proof = Proof()
    proof.take(Progress("", 5, 1.0, 1.0))
    proof.raise_alarm(Alarm("", "replay", "It does not replay."))
    proof.take(Progress("", 5, 1.0, 1.0, "trouble"))
    assert proof.alarm == "It does not replay."
    proof.take(Progress("", 9, time.time() + 1, None))
    assert proof.alarm is None
