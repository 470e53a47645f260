"""The follower compares the node's database with its replica, once after each start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.follower.comparing import NodeComparison
from cln_backup.follower.messages import Alarm, Progress
from cln_backup.replay import beside
from cln_backup.replay.kept import KeptReplica
from cln_backup.replay.replica import data_version
from tests import captured
from tests.follower.following import Follower
from tests.histories import append, database

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import apsw

    from cln_backup.follower.messages import Said
    from cln_backup.model.change import Change

_SMALL = captured.COMMITTED / "small"
KINDS = ("file", "dir")


class Recorded:
    """A recorded node's database, and a backup of the node."""

    def __init__(self, base: Path, kind: str = "dir") -> None:
        self.url = f"{kind}://{base}/backup"
        self.database = captured.unpacked(_SMALL / "router.sqlite3.xz", base / "node.sqlite3")
        self.replica = base / "replica"
        create_backend(self.url, None)
        append(self.url, captured.changes(_SMALL / "router.jsonl.xz"))

    def change(self, *statements: str) -> None:
        with database(self.database) as connection:
            for statement in statements:
                connection.execute(statement)

    def follower(self) -> Follower:
        return Follower(self.url, self.replica, database=self.database)


def _is_compared(said: Said) -> bool:
    return isinstance(said, Progress) and said.compared_at is not None


@pytest.mark.parametrize("kind", KINDS)
def test_same_database_is_compared_once(kind: str, tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, kind)
    # Innocent differences.
    recorded.change("VACUUM", "CREATE INDEX mine ON forwards (out_htlc_id)", "ANALYZE")
    with recorded.follower() as follower:
        first = follower.hear(_is_compared)
        assert isinstance(first, Progress)
        assert follower.alarms() == []
        # It continues to follow, and does not compare again.
        recorded.change("DELETE FROM forwards")
        append(recorded.url, [_next(recorded)])
        follower.hear(lambda said: isinstance(said, Progress) and said.proven_version == 829)
        last = follower.heard[-1]
        assert isinstance(last, Progress)
        assert last.compared_at == first.compared_at
        assert follower.alarms() == []


def _next(recorded: Recorded) -> Change:
    from tests.histories import transaction

    with open_writer(recorded.url) as backend:
        return transaction(backend.version + 1)


def test_difference_is_an_alarm_in_names_and_counts(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.change(
        "UPDATE forwards SET in_msatoshi = in_msatoshi + 1 WHERE in_htlc_id < 2",
        "DELETE FROM blocks WHERE height = 110",
        "CREATE INDEX mine ON forwards (out_htlc_id)",
    )
    with recorded.follower() as follower:
        alarm = follower.hear_alarm()
        assert alarm.kind == "content"
        assert alarm.text == (
            "Its content differs from the node's database: blocks: 1 row is missing in the "
            "database; forwards: 2 rows differ."
        )
        follower.hear(_is_compared)
        assert follower.alarms() == [alarm]


def test_difference_of_a_damaged_replica_is_no_alarm(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    replica = KeptReplica.open(str(recorded.replica))
    with open_reader(recorded.url) as reader:
        replica.catch_up(reader)
    replica.close()
    with database(recorded.replica / "replica.sqlite3") as connection:
        connection.execute("UPDATE forwards SET in_msatoshi = in_msatoshi + 1")
    with recorded.follower() as follower:
        follower.hear(_is_compared)
        assert follower.alarms() == []
        follower.close()
    replica = KeptReplica.open(str(recorded.replica))
    own = replica.connection.execute("SELECT sum(in_msatoshi) FROM forwards").fetchall()
    replica.close()
    with database(recorded.database) as connection:
        assert connection.execute("SELECT sum(in_msatoshi) FROM forwards").fetchall() == own


def test_head_that_is_not_committed_is_not_compared(tmp_path: Path) -> None:
    """The node is one change behind its backup: it is just about to commit that change."""
    recorded = Recorded(tmp_path)
    append(recorded.url, [_next(recorded)])
    with recorded.follower() as follower:
        follower.hear(_is_compared)
        follower.hear_version(829)


def test_read_lock_is_held_by_the_thread_that_keeps_its_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the lowest priority, a busy machine or disk would keep the node from committing."""
    recorded = Recorded(tmp_path)
    inside: list[bool] = []
    runs = 0

    def run(work: Callable[[], None]) -> None:
        nonlocal runs
        runs += 1
        inside.append(True)
        work()
        inside.clear()

    def version_under_lock(connection: apsw.Connection) -> int:
        assert inside
        return data_version(connection)

    monkeypatch.setattr(beside, "data_version", version_under_lock)
    replica = KeptReplica.open(str(recorded.replica))
    with open_reader(recorded.url) as reader:
        replica.catch_up(reader)
        comparison = NodeComparison(str(recorded.database), run)
        while not comparison.is_over:
            comparison.go_on(replica, reader)
    replica.close()
    assert comparison.finished_at is not None
    assert comparison.differences == ""
    assert runs > 10


@pytest.mark.parametrize("content", [None, b"this is not a database" * 50])
def test_database_that_cannot_be_read_is_no_alarm(content: bytes | None, tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.database.unlink()
    if content is not None:
        recorded.database.write_bytes(content)
    with recorded.follower() as follower:
        follower.hear_version(828)
        append(recorded.url, [_next(recorded)])
        follower.hear_version(829)
        assert not any(isinstance(said, Alarm) or _is_compared(said) for said in follower.heard)
