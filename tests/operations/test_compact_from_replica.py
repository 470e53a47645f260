"""A compaction from a kept replica: the same backup as by a replay, and the replica goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.ticket import MoreNeeded
from cln_backup.compaction.from_replica import Prepared, prepare
from cln_backup.model.errors import StorageError
from cln_backup.replay.kept import KeptReplica
from cln_backup.storage import scratch
from tests.disasters.places import KINDS, url_in
from tests.histories import (
    OFF,
    ON,
    add_all,
    append,
    assert_restores,
    first,
    payment,
    payments,
    rider,
    snapshot_of,
    started_node,
    told,
    told_by,
    wearing_payments,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cln_backup.backends.contract import Reader, Writer
    from cln_backup.backends.ticket import Statistics, Ticket
    from cln_backup.model.change import Change

HISTORY = [*started_node(), *wearing_payments(4, 60)]


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place = tmp_path / "backup"
    place.mkdir()
    url = url_in(place, str(request.param))
    create_backend(url, None)
    return url


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[KeptReplica]:
    replica = KeptReplica.open(str(tmp_path / "replica"))
    yield replica
    replica.close()


def _at_once(work: Callable[[], Ticket]) -> Ticket:
    return work()


def _prepared(
    replica: KeptReplica, reader: Reader, check: Callable[[], None] | None = None
) -> Prepared:
    prepared = prepare(replica, reader, _at_once, check)
    assert prepared is not None
    return prepared


def _taken_over(writer: Writer, reader: Reader, ticket: Ticket) -> Statistics:
    while isinstance(done := writer.take_over(ticket), MoreNeeded):
        ticket = reader.prepare_more(ticket)
    return done


def _follow(replica: KeptReplica, reader: Reader) -> None:
    reader.wait_for_more(0)
    replica.catch_up(reader)


def test_replica_makes_the_base_and_goes_on(url: str, replica: KeptReplica, tmp_path: Path) -> None:
    history = list(HISTORY)
    append(url, history)
    with open_writer(url) as writer, open_reader(url) as reader:
        replica.catch_up(reader)
        for round_number in range(3):
            with open_reader(url) as own:
                ticket, base = _prepared(replica, own)
                more = payments(writer.version + 1, writer.version + 20)
                add_all(writer, more)  # the node goes on
                history += more
                statistics = _taken_over(writer, own, ticket)
            assert statistics["before"]["version_count"] > 20
            reader.wait_for_more(0)
            replica.rebase(base, reader)
            replica.is_new = False
            replica.catch_up(reader)
            assert not replica.is_new, "the history was not replayed again"
            assert replica.version == writer.version
            assert replica.check() == 0
            assert told_by(url)[0].version == base.version, f"round {round_number}"
            assert len(told_by(url)) == 1 + 20
    assert_restores(url, history, tmp_path)


def test_replica_follows_meanwhile(url: str, replica: KeptReplica, tmp_path: Path) -> None:
    history = list(HISTORY)
    append(url, history)
    with open_writer(url) as writer, open_reader(url) as reader, open_reader(url) as own:
        pieces = 0

        def follow() -> None:
            nonlocal pieces
            pieces += 1
            change = payment(writer.version + 1)
            writer.add_change(change)
            history.append(change)
            _follow(replica, reader)

        ticket, base = _prepared(replica, own, follow)
        assert pieces > 0
        _taken_over(writer, own, ticket)
        reader.wait_for_more(0)
        assert replica.position is not None
        assert base.version == 58 < replica.position.version, "it went on meanwhile"
        replica.rebase(base, reader)
        replica.is_new = False
        writer.add_change(change := payment(writer.version + 1))
        history.append(change)
        _follow(replica, reader)
        assert not replica.is_new
        assert replica.check() == 0
    assert_restores(url, history, tmp_path)


def test_replica_that_misses_the_swap_starts_anew(url: str, tmp_path: Path) -> None:
    """Killed before it learned of it: it has a position of a history that is no more."""
    append(url, HISTORY)
    replica = KeptReplica.open(str(tmp_path / "replica"))
    with open_writer(url) as writer, open_reader(url) as own:
        ticket, _ = _prepared(replica, own)
        _taken_over(writer, own, ticket)
        more = payments(60, 80)
        add_all(writer, more)
    replica.close()
    replica = KeptReplica.open(str(tmp_path / "replica"))
    with open_reader(url) as reader:
        replica.catch_up(reader)
        assert replica.is_new is url.startswith("file:"), "a digest survives"
        assert replica.version == 79
        assert replica.check() == 0
    replica.close()
    assert_restores(url, [*HISTORY, *more], tmp_path)


def test_a_position_of_something_else_is_not_taken_over(url: str, replica: KeptReplica) -> None:
    append(url, HISTORY)
    with open_writer(url) as writer, open_reader(url) as own:
        ticket, base = _prepared(replica, own)
        with open_reader(url) as reader:
            replica.rebase(base, reader)  # the backup has not been replaced
            assert replica.position == base
        _taken_over(writer, own, ticket)
        with open_reader(url) as reader:
            replica.rebase(base._replace(version=base.version - 1), reader)
            assert replica.position == base


@pytest.mark.parametrize(
    "head",
    [
        [],
        [rider(59, OFF)],
        "snapshot",
    ],
)
def test_only_a_transaction_at_the_head_is_for_a_replica(
    url: str, replica: KeptReplica, head: list[Change] | str, tmp_path: Path
) -> None:
    history = HISTORY
    if head == "snapshot":
        head = [snapshot_of(history, tmp_path / "base.sqlite3")]
    assert not isinstance(head, str)
    append(url, [*history, *head] if head else [])
    before = told_by(url)
    with open_reader(url) as reader:
        assert prepare(replica, reader, _at_once) is None
    assert told_by(url) == before


def test_foreign_keys_that_are_off_stay_off(url: str, replica: KeptReplica, tmp_path: Path) -> None:
    history = [first(), *payments(2, 9), rider(8, OFF), payment(9), payment(10)]
    append(url, history)
    with open_writer(url) as writer:
        with open_reader(url) as own:
            ticket, base = _prepared(replica, own)
            _taken_over(writer, own, ticket)
        with open_reader(url) as reader:
            replica.rebase(base, reader)
            replica.catch_up(reader)
            assert replica.check() == 0
        add_all(writer, [rider(10, ON), payment(11)])
    assert told_by(url)[1:3] == told([rider(9, OFF), payment(10)])
    assert_restores(url, [*history, rider(10, ON), payment(11)], tmp_path)


def test_no_room_leaves_the_backup_as_it_was(
    url: str, replica: KeptReplica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(url, HISTORY)
    names = sorted(path.name for path in (tmp_path / "backup").iterdir())
    with open_reader(url) as reader:
        monkeypatch.setattr(scratch, "room_bytes", lambda *_args, **_options: 4096)
        with pytest.raises(StorageError, match="nearly full"):
            prepare(replica, reader, _at_once)
        monkeypatch.undo()
        replica.catch_up(reader)
        assert replica.version == 59
    assert sorted(path.name for path in (tmp_path / "backup").iterdir()) == names
    assert_restores(url, HISTORY, tmp_path)
