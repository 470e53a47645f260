"""A server that compacts its backups by itself."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.compaction.policy import Limits
from cln_backup.model.errors import StorageError
from cln_backup.server.preparing import Preparing
from cln_backup.server.self_compaction import SETTLED_S, SelfCompaction
from tests.histories import (
    append,
    assert_same_database,
    build_database,
    payments,
    snapshot_of,
    started_node,
    told,
    told_by,
    transaction,
    wearing_payments,
)
from tests.socket.followers import followed, wait_until_proven
from tests.socket.serving import server_here
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cln_backup.backends.ticket import Statistics
    from cln_backup.server.preparing import FollowerSide
    from cln_backup.server.served import Served

_LIMITS = Limits(max_changes=100)
_VERSION_IS_SET = "UPDATE version SET version=240"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Served, str]]:
    """A node with a log that is due, and its URL at the server."""
    here = f"dir://{tmp_path}/node"
    create_backend(here, None)
    append(here, [*started_node(), *wearing_payments(4, 150)])
    with server_here() as server:
        there = server.add(here)
        node = server.served(there)
        node.open()
        yield node, there


def _changes(url: str) -> int:
    with open_reader(url) as reader:
        return reader.standing.version_count


def test_compacts_when_the_policy_says_so(
    served: tuple[Served, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node, url = served
    caplog.set_level(logging.INFO, "cln_backup.server")
    by_itself = SelfCompaction({"": node}, _LIMITS, settled_s=0)
    with open_writer(url) as writer:
        before = node.standing()
        by_itself.look(node)
        assert node.counters.compactions == node.counters.self_compactions == 1
        assert writer.standing.position.digest == before.position.digest
        writer.add_change(wearing_payments(150, 151)[0])
        by_itself.look(node)
        assert node.counters.self_compactions == 1
    assert _changes(url) == 3
    assert "Compacting, because the log has more changes than the policy allows" in caplog.text
    assert node.space_bound_bytes is not None
    from cln_backup.operations.restore import restore

    with open_reader(url) as reader:
        restored = restore(reader, str(tmp_path / "restored.sqlite3"))
    history = [*started_node(), *wearing_payments(4, 151)]
    assert_same_database(restored.path, build_database(tmp_path / "expected.sqlite3", history))


def test_waits_until_the_node_is_up(served: tuple[Served, str]) -> None:
    """A start may be a migration, whose restore point a compaction would fold."""
    node, url = served
    SelfCompaction({"": node}, _LIMITS).look(node)
    assert SETTLED_S > 120
    with open_writer(url):
        SelfCompaction({"": node}, _LIMITS).look(node)
        assert _changes(url) > 100
        SelfCompaction({"": node}, _LIMITS, settled_s=0).look(node)
    assert _changes(url) == 2


def test_history_that_ends_within_a_migration_is_left_alone(
    served: tuple[Served, str], caplog: pytest.LogCaptureFixture
) -> None:
    node, url = served
    by_itself = SelfCompaction({"": node}, _LIMITS, settled_s=0)
    with open_writer(url) as writer:
        writer.add_change(transaction(150, "CREATE TABLE version (version INTEGER)"))
        writer.add_change(transaction(151, _VERSION_IS_SET))
        writer.add_change(transaction(152, "ALTER TABLE peers ADD feature_bits BLOB"))
        writer.add_change(transaction(153))
        count = _changes(url)
        by_itself.look(node)
        assert _changes(url) == count
        assert "a migration of the database that began after data version 151" in caplog.text
        # A failure is tried again after a pause, and asking for it is something else.
        by_itself.look(node)
        assert caplog.text.count("a migration of the database") == 1
        writer.add_change(transaction(154, _VERSION_IS_SET))
        writer.add_change(transaction(155))
        SelfCompaction({"": node}, _LIMITS, settled_s=0).look(node)
        assert _changes(url) == 2


def test_follower_makes_the_snapshot_from_its_replica(
    served: tuple[Served, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, url = served
    started = []
    start = Preparing._start

    def notice(preparing: Preparing, follower: FollowerSide | None) -> None:
        started.append(follower is not None)
        start(preparing, follower)

    monkeypatch.setattr(Preparing, "_start", notice)
    by_itself = SelfCompaction({"": node}, _LIMITS, settled_s=0)
    replicas = str(tmp_path / "replicas")
    with followed({node.name: node}, replicas), open_writer(url) as writer:
        wait_until_proven(node, 149)
        replica = tmp_path / "replicas" / node.name / "replica.sqlite3"
        inode = replica.stat().st_ino
        before = node.standing()
        by_itself.look(node)
        assert node.counters.self_compactions == 1
        assert node.standing().history == before.history
        assert _changes(url) == 2
        writer.add_change(wearing_payments(150, 151)[0])
        wait_until_proven(node, 150)
        assert replica.stat().st_ino == inode, "it was built again"
    assert started == [True]


def test_follower_refuses_within_a_migration_too(
    served: tuple[Served, str], caplog: pytest.LogCaptureFixture
) -> None:
    node, url = served
    with open_writer(url) as writer:
        writer.add_change(transaction(150, "CREATE TABLE version (version INTEGER)"))
        writer.add_change(transaction(151, _VERSION_IS_SET))
        writer.add_change(transaction(152, "ALTER TABLE peers ADD feature_bits BLOB"))
        writer.add_change(transaction(153))
        with followed({node.name: node}):
            wait_until_proven(node, 153)
            SelfCompaction({"": node}, _LIMITS, settled_s=0).look(node)
        assert "a migration of the database that began after data version 151" in caplog.text
        assert _changes(url) > 100


def test_thread_looks_at_every_node_and_ends(served: tuple[Served, str]) -> None:
    node, url = served
    by_itself = SelfCompaction({"": node}, _LIMITS, look_s=0.01, settled_s=0)
    with open_writer(url):
        by_itself.start()
        wait_until(lambda: node.counters.self_compactions, "it does not compact")
        assert by_itself._thread.is_alive()
        by_itself.stop()
        by_itself._thread.join()
    assert _changes(url) == 2


@pytest.mark.parametrize("scheme", ["dir", "file"])
def test_compaction_is_given_up_when_the_backup_is_started_over(
    tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its replacement has the earlier history."""
    url = f"{scheme}://{tmp_path}/node"
    base = snapshot_of(started_node(), tmp_path / "base.sqlite3")
    create_backend(url, None)
    append(url, [*started_node(), *wearing_payments(4, 60)])
    with server_here() as server:
        there = server.add(url)
        wait = Preparing.wait

        def wait_and_start_over(self: Preparing) -> Callable[[], Statistics | None]:
            step = wait(self)
            with open_writer(there) as writer:
                writer.start_over(base)
            return step

        monkeypatch.setattr(Preparing, "wait", wait_and_start_over)
        node = server.served(there)
        with pytest.raises(StorageError, match="started over"):
            node.compact()
        monkeypatch.undo()
        append(there, payments(4, 6))
        assert told_by(there) == told([base, *payments(4, 6)])
        node.compact()
        node.close()
    assert told_by(url)[-1] == told(payments(5, 6))[0]
    assert list(tmp_path.rglob("*compacting*")) == []
