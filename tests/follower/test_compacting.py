"""Compactions that a follower prepares, as a writer beside it asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.ticket import MoreNeeded
from cln_backup.compaction.messages import Compact, More, Ready, Settled
from cln_backup.follower.helper import FollowerHelper
from cln_backup.follower.messages import CompactionSaid
from cln_backup.operations.restore import restore
from tests.disasters.places import KINDS, url_in
from tests.follower.following import Follower
from tests.histories import append, assert_same_database, build_database, first, payments

if TYPE_CHECKING:
    from pathlib import Path

    from cln_backup.process.channel import Message

HISTORY = [first(), *payments(2, 200)]


@pytest.mark.parametrize("kind", KINDS)
def test_late_answer_of_a_compaction_that_was_given_up_is_told_apart(
    kind: str, tmp_path: Path
) -> None:
    """Both were asked for before the follower came to the first one."""
    place = tmp_path / "backup"
    place.mkdir()
    url = url_in(place, kind)
    create_backend(url, None)
    append(url, HISTORY)
    with Follower(url, tmp_path / "replica") as follower:
        follower.hear_version(199)

        def ask(message: Message) -> bool:
            follower.child.send(message)
            return True

        def answer() -> CompactionSaid:
            said = follower.hear(lambda said: isinstance(said, CompactionSaid))
            assert isinstance(said, CompactionSaid)
            follower.heard.clear()
            return said

        given_up, wanted = FollowerHelper(ask, "node"), FollowerHelper(ask, "node")
        with open_writer(url) as writer:
            given_up.send(Compact(if_it_pays=False))
            wanted.send(Compact(if_it_pays=False))
            given_up.send(More())  # neither of them is taken for one about the second
            given_up.close()
            wanted.send(More())
            late, ready, more = answer(), answer(), answer()
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
