"""Of two writers at most one is answered, whatever the order of their steps."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_writer, place_at
from cln_backup.model.errors import BackupError, WriterConflict
from tests import postgres_cluster
from tests.histories import append, payment, payments, started_node, told, told_by
from tests.soak import SOAK

if TYPE_CHECKING:
    from pathlib import Path

    from cln_backup.model.change import Change


@pytest.fixture
def url(tmp_path: Path) -> str:
    found = postgres_cluster.shared().url(postgres_cluster.node_of(tmp_path))
    create_backend(found, None)
    append(found, started_node())
    return found


def test_writer_that_was_fenced_while_it_lives_stores_nothing_more(url: str) -> None:
    with open_writer(url) as old:
        old.add_change(payment(4))
        with place_at(url).fence() as new:
            assert (new.version, new.standing.epoch) == (4, old.standing.epoch + 1)
            with pytest.raises(WriterConflict):
                old.add_change(payment(5, "never answered"))
            with pytest.raises(BackupError):
                old.rewind()
            new.add_change(payment(5))
    assert told_by(url) == told([*started_node(), payment(4), payment(5)])


def test_writer_that_was_fenced_cannot_take_a_compaction_over(url: str) -> None:
    from cln_backup.backends.ticket import Folded
    from cln_backup.model.change import Change
    from tests.histories import image

    base = Change(2, image("all before the head"), None)
    with open_writer(url) as old, place_at(url).open_reader() as reader:
        ticket = reader.prepare_compaction(lambda _: Folded(base, foreign_keys=True))
        with place_at(url).fence() as new:
            with pytest.raises(BackupError):
                old.take_over(ticket)
            assert new.version == 3
    assert told_by(url) == told(started_node())


def test_state_of_an_older_moment_cannot_go_on(url: str) -> None:
    """A virtual machine that was set back continues with the memory of that moment."""
    with open_writer(url) as writer:
        at, end = writer._head_row.at, writer._end  # type: ignore[attr-defined]
        writer.add_change(payment(4))
        writer._head_row.at, writer._end = at, end  # type: ignore[attr-defined]
        with pytest.raises(BackupError):
            writer.store_change(payment(5))
    assert told_by(url) == told([*started_node(), payment(4)])


@pytest.mark.parametrize("seed", range(40 if SOAK else 2))
def test_two_racing_writers_are_never_both_answered(url: str, seed: int) -> None:
    """Both take the backup over and over again, and append without a pause."""
    answered: dict[int, list[str]] = {}
    both = threading.Lock()
    rounds = 200 if SOAK else 12

    def write(name: str) -> None:
        choices = random.Random(f"{seed} {name}")
        for _ in range(rounds):
            try:
                with place_at(url).fence() as writer:
                    for _ in range(choices.randint(1, 4)):
                        version = writer.version + 1
                        writer.add_change(payment(version, name))
                        with both:
                            answered.setdefault(version, []).append(name)
            except WriterConflict:
                continue

    threads = [threading.Thread(target=write, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(names) == 1 for names in answered.values()), answered
    with place_at(url).open_reader() as reader:
        stored = {change.version: change for change in reader.stream_changes(4)}
    assert len(stored) >= len(answered) > 0
    for version, [name] in answered.items():
        assert told([stored[version]]) == told([payment(version, name)])


def test_change_larger_than_a_row_is_stored_in_parts_and_fenced(url: str) -> None:
    text = random.Random(1).randbytes(5_000_000).hex()
    large: Change = payment(4, text)
    with open_writer(url) as old:
        old.add_change(large)
        with place_at(url).fence() as new:
            with pytest.raises(WriterConflict):
                old.add_change(payment(5, text))
            new.add_change(payment(5))
    assert told_by(url) == told([*started_node(), large, payment(5)])


def test_old_rows_are_removed_after_a_compaction_a_few_at_a_time(url: str) -> None:
    from cln_backup.backends.ticket import Folded
    from cln_backup.model.change import Change
    from tests.histories import image
    from tests.postgres.appending import wait_for

    server = postgres_cluster.shared()
    node = url.partition("node=")[2].partition("&")[0]
    count = (
        "SELECT count(*) FROM cln_backup.records JOIN cln_backup.heads USING (backup) "
        "WHERE node = %s AND part < 0"
    )
    append(
        url, [Change(9, image(random.Random(1).randbytes(2_000_000).hex()), None)]
    )  # several rows of its own
    append(url, payments(10, 12))
    base = Change(10, image("all before the head"), None)
    with open_writer(url) as writer:
        before = server.sql(count, node)[0][0]
        with place_at(url).open_reader() as held, place_at(url).open_reader() as reader:
            ticket = reader.prepare_compaction(lambda _: Folded(base, foreign_keys=True))
            writer.take_over(ticket)
            for version in range(12, 15):
                writer.add_change(payment(version))
            assert server.sql(count, node)[0][0] == before + 1  # one reads the old generation
            assert told(held.stream_changes())[: len(started_node())] == told(started_node())
        wait_for(lambda: server.sql(count, node)[0][0] == 1)  # the new base; the node is quiet
