"""Compactions that a follower prepares, as a writer beside it asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.ticket import MoreNeeded
from cln_backup.compaction.messages import Compact, Declined, More, Ready, Settled
from cln_backup.follower.helper import FollowerHelper
from cln_backup.follower.messages import CompactionSaid, Progress
from cln_backup.operations.restore import restore
from tests.disasters.places import KINDS, url_in
from tests.follower.following import Follower
from tests.histories import (
    append,
    assert_same_database,
    build_database,
    first,
    payments,
    snapshot_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from cln_backup.process.channel import Message

HISTORY = [first(), *payments(2, 200)]


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new backup, in a directory of its own."""
    place = tmp_path / "backup"
    place.mkdir()
    made = url_in(place, request.param)
    create_backend(made, None)
    return made


def _helper(follower: Follower) -> FollowerHelper:
    def ask(message: Message) -> bool:
        follower.child.send(message)
        return True

    return FollowerHelper(ask, "node")


def _answer(follower: Follower) -> CompactionSaid:
    said = follower.hear(lambda said: isinstance(said, CompactionSaid))
    assert isinstance(said, CompactionSaid)
    follower.heard.clear()
    return said


def test_late_answer_of_a_compaction_that_was_given_up_is_told_apart(
    url: str, tmp_path: Path
) -> None:
    """Both were asked for before the follower came to the first one."""
    append(url, HISTORY)
    with Follower(url, tmp_path / "replica") as follower:
        follower.hear_version(199)
        given_up, wanted = _helper(follower), _helper(follower)
        with open_writer(url) as writer:
            given_up.send(Compact(if_it_pays=False))
            wanted.send(Compact(if_it_pays=False))
            given_up.send(More())  # neither of them is taken for one about the second
            given_up.close()
            wanted.send(More())
            late, ready, more = _answer(follower), _answer(follower), _answer(follower)
            assert (late.number, ready.number, more.number) == (
                given_up.number,
                wanted.number,
                wanted.number,
            )
            assert isinstance(more.said, Ready)
            assert not isinstance(writer.take_over(more.said.ticket), MoreNeeded)
            wanted.send(Settled(taken=True))
            for change in payments(200, 210):
                writer.add_change(change)
        follower.hear_version(209)
    with open_reader(url) as reader:
        restore(reader, str(tmp_path / "restored.sqlite3"))
    build_database(tmp_path / "expected.sqlite3", [*HISTORY, *payments(200, 210)])
    assert_same_database(tmp_path / "restored.sqlite3", tmp_path / "expected.sqlite3")


def _change_a_bit(path: Path) -> bool:
    """In a text, wherever a file has it; returns whether it has."""
    content = path.read_bytes()
    at = content.find(b"payment 150")
    while at >= 0:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"q")
        at = content.find(b"payment 150", at + 1)
    return b"payment 150" in content


def test_bit_that_the_replicas_disk_changed_does_not_get_into_the_backup(
    url: str, tmp_path: Path
) -> None:
    """No check of SQLite finds it; the node's database does."""
    append(url, [snapshot_of(HISTORY, tmp_path / "base.sqlite3"), *payments(200, 210)])
    node = build_database(tmp_path / "node.sqlite3", [*HISTORY, *payments(200, 210)])
    with Follower(url, tmp_path / "replica", database=node) as follower, open_writer(url) as writer:
        follower.hear(lambda said: isinstance(said, Progress) and said.compared_at is not None)
        changed = [_change_a_bit(path) for path in (tmp_path / "replica").glob("replica.*")]
        assert any(changed)
        _helper(follower).send(Compact(if_it_pays=False))
        assert _answer(follower).said == Declined()
        for change in payments(210, 220):
            writer.add_change(change)
        build_database(tmp_path / "expected.sqlite3", [*HISTORY, *payments(200, 220)])
        (tmp_path / "expected.sqlite3").replace(node)
        follower.hear_version(219)
        _helper(follower).send(Compact(if_it_pays=False))
        ready = _answer(follower).said
        assert isinstance(ready, Ready)
        assert not isinstance(writer.take_over(ready.ticket), MoreNeeded)
        assert follower.alarms() == []
    with open_reader(url) as reader:
        restore(reader, str(tmp_path / "restored.sqlite3"))
    assert_same_database(tmp_path / "restored.sqlite3", node)
