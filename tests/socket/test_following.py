"""A server that follows its backups, and says how far they are proven."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.follower.messages import Alarm, Progress
from cln_backup.server.following import NotFollowed, replica_of
from cln_backup.server.nodes import open_nodes, read_nodes, renew
from cln_backup.server.proof import Proof
from cln_backup.server.served import Served
from simulator.content import differences
from tests import programs
from tests.format2.small import url_of
from tests.histories import (
    add_all,
    append,
    build_database,
    payment,
    payments,
    snapshot_of,
    started_node,
    transaction,
)
from tests.socket.followers import followed, wait_until_proven
from tests.socket.serving import server_here, server_process
from tests.waiting import WAIT_S, wait_for, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cln_backup.model.change import Change
    from tests.socket.serving import ServerProcess


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
    return wait_for(
        lambda: _metrics(address, node),
        lambda metrics: metrics.get("proven_version", 0) >= version,
        pause_s=0.1,
    )


def test_server_says_how_far_its_backup_is_proven(tmp_path: Path) -> None:
    """In its metrics, its log, and to `backup-cli status`."""
    with _following(_backup(f"dir://{tmp_path}/node")) as (server, address):
        _wait_for(address, 9)
        append(server.url, payments(10, 12))
        metrics = _wait_for(address, 11)
        assert metrics["head_version"] == metrics["proven_version"] == 11
        assert metrics["alarm"] == metrics["proof_lag_seconds"] == 0
        assert abs(metrics["proven_timestamp_seconds"] - time.time()) < 3600
        shown = json.loads(programs.run("status", "--json", server.url).stdout)
        assert shown["proven_version"] == 11
        assert abs(shown["proven_at"] - time.time()) < 3600
        assert server.terminate() == 0
    assert "Proven up to version" in "".join(server.said)
    replica = tmp_path / "replica-of-node"
    assert oct(replica.stat().st_mode)[-3:] == "700"
    assert (replica / "replica.sqlite3").exists()


def _served(tmp_path: Path, name: str = "node", scheme: str = "dir") -> Served:
    node = Served(name, _backup(f"{scheme}://{tmp_path}/{name}"), None)
    node.open()
    return node


def _store(node: Served, *changes: Change) -> None:
    """As a node does, through the server."""
    with server_here() as server:
        server.nodes[node.name] = node
        append(f"socket:{server.address}?node={node.name}", changes)
    node.open()


@pytest.mark.parametrize("scheme", ["dir", "file"])
def test_killed_follower_is_started_again_and_continues(
    tmp_path: Path, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    node = _served(tmp_path, scheme=scheme)
    with followed({"node": node}) as following:
        wait_until_proven(node, 9)
        inode = (tmp_path / "replica-of-node" / "replica.sqlite3").stat().st_ino
        assert following._child is not None
        os.kill(following._child.pid, signal.SIGKILL)
        _store(node, *payments(10, 12))
        wait_until_proven(node, 11)
        assert (tmp_path / "replica-of-node" / "replica.sqlite3").stat().st_ino == inode
        assert node.proof.lag_s() == 0
    assert "The follower starts again in 1 seconds" in caplog.text
    node.close()


def test_change_that_does_not_replay_is_an_alarm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = _served(tmp_path)
    with followed({"node": node}):
        wait_until_proven(node, 9)
        _store(node, transaction(10, "INSERT INTO nowhere VALUES (1)"))
        wait_until(lambda: node.proof.alarm is not None, "no alarm")
        assert node.proof.version == 9
        assert node.proof.lag_s() > 0
        _store(node, payment(11))  # the node is not touched by it
    (alarm,) = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert alarm.getMessage().startswith("node: ALARM: ")
    assert "nowhere" not in alarm.getMessage()
    node.close()


def test_list_of_nodes_that_is_read_again_changes_what_is_followed(tmp_path: Path) -> None:
    listed = tmp_path / "nodes"
    lines = [f"{name} {_backup(f'dir://{tmp_path}/{name}')} {'0' * 64}\n" for name in ("a", "b")]
    listed.write_text(lines[0])
    nodes = read_nodes(str(listed))
    open_nodes(nodes.values())
    replicas = tmp_path / "replicas"
    with followed(nodes, str(replicas)):
        wait_until_proven(nodes["a"], 9)
        listed.write_text("".join(lines))
        renew(nodes, str(listed))
        wait_until_proven(nodes["b"], 9)
        listed.write_text(lines[1].replace("0" * 64, "1" * 64))
        renew(nodes, str(listed))
        node = nodes["b"]
        assert isinstance(node, Served)
        assert node.proof.version == 9, "a new token is no new backup"
        wait_until(lambda: not (replicas / "a").exists(), "the replica stays")
        assert (replicas / "b" / "replica.sqlite3").exists()
    nodes["b"].close()


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


def test_replica_of_a_backup_that_was_started_over(tmp_path: Path) -> None:
    """The follower sleeps meanwhile; then version and number of changes are as they were."""
    url = f"file://{tmp_path}/node"
    base = snapshot_of(started_node(), tmp_path / "base.sqlite3")
    create_backend(url, None)
    append(url, [base, *payments(4, 9)])
    with server_here() as server, followed(server.nodes) as following:
        there = server.add(url)
        node = server.served(there)
        node.open()
        wait_until_proven(node, 8)
        assert following._child is not None
        os.kill(following._child.pid, signal.SIGSTOP)
        with open_writer(there) as writer:
            writer.start_over(base)
            writer.add_change(transaction(4, "DELETE FROM payments"))
            add_all(writer, payments(5, 9))
            done_at = time.time()
            wait_until(lambda: _proven_since(node, done_at), lambda: node.proof.progress)
    with open_reader(url) as reader:
        expected = build_database(tmp_path / "expected.sqlite3", reader.stream_changes(head=False))
    replica = tmp_path / "replica-of-node" / "replica.sqlite3"
    assert differences(replica, expected) == []


def _proven_since(node: Served, since: float) -> bool:
    """Whether a replay up to the head has ended after this time."""
    found = node.proof.progress
    return found is not None and (found.proven_at or 0) > since and node.proof.version == 8


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
    assert 0 < proof.lag_s() < first + WAIT_S
    proof.look_at(8)  # the head was dropped
    proof.take(Progress("", 8, 2.0, 2.0))
    assert proof.lag_s() == 0
    for version in range(9, 5000):
        proof.look_at(version)
    proof.take(Progress("", 4999, 3.0, 3.0))
    assert proof.lag_s() == 0


@pytest.mark.parametrize("set_back_s", [0, 3600], ids=["clock", "clock that is set back"])
def test_alarm_ends_with_a_replay_up_to_the_head_after_it(set_back_s: int) -> None:
    proof = Proof()
    before = time.time()
    later = before + 1 - set_back_s
    proof.take(Progress("", 5, before, 1.0))
    assert _state(proof) == (None, True)
    proof.raise_alarm(Alarm("", "replay", "It does not replay."))
    proof.take(Progress("", 5, before, 1.0, "trouble"))
    proof.take(Progress("", 5, before, 1.0))
    assert _state(proof) == ("replay", False)
    proof.take(Progress("", 9, later, None))
    assert _state(proof) == (None, True)
    proof.raise_alarm(Alarm("", "integrity", "SQLite finds errors."))
    proof.take(Progress("", 9, later, None))
    assert _state(proof) == ("integrity", False)
    proof.take(Progress("", 9, later, None, checked_at=later))
    assert _state(proof) == (None, True)


def _state(proof: Proof) -> tuple[str | None, bool]:
    """The kind of the alarm, and whether the follower is at hand."""
    kind = None if proof.alarm is None else proof.alarm.kind
    return kind, proof.is_followed()
