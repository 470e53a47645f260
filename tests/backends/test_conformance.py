from __future__ import annotations

import contextlib
import os
import pickle
import signal
import stat
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from cln_backup.backends import SCHEMES, create_backend, open_reader, open_writer, place_at
from cln_backup.backends.ticket import MoreNeeded, size_of
from cln_backup.model.change import Change
from cln_backup.model.errors import (
    BackupError,
    Discontinuity,
    NotFound,
    StorageError,
    WriterConflict,
)
from tests.backends.conformance import (
    COMPACTED_ELSEWHERE,
    PLACES,
    Conformance,
    writer_elsewhere,
)
from tests.histories import (
    add_all,
    append,
    image,
    payment,
    payments,
    prepared,
    started_node,
    take_over,
    told,
    told_by,
)
from tests.soak import SOAK

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=sorted(PLACES))
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(scheme: str, tmp_path: Path) -> str:
    """An unused place of the scheme."""
    return PLACES[scheme](tmp_path)


stages = pytest.mark.parametrize("scheme", sorted(set(PLACES) - set(COMPACTED_ELSEWHERE)))
"""For tests of what the caller does in a compaction: elsewhere the storage compacts by itself."""


@pytest.fixture
def started(url: str) -> str:
    """A backup of a node that has just made its tables."""
    create_backend(url, None)
    append(url, started_node())
    return url


def test_every_scheme_is_in_this_suite() -> None:
    """But `az` and `gs`: the same code as `s3`, and no wheel has an engine (tests/objects)."""
    assert {place.partition("-")[0] for place in PLACES} == set(SCHEMES) - {"az", "gs"}


@pytest.mark.parametrize("part", range(4 if SOAK else 1))
def test_any_order_of_calls(scheme: str, memory_path: Path, part: int) -> None:
    numbers = count()

    def new_url() -> str:
        directory = memory_path / f"{part}-{next(numbers)}"
        directory.mkdir()
        return PLACES[scheme](directory)

    class Machine(Conformance):
        def __init__(self) -> None:
            super().__init__(new_url)

    numbers_of = {"socket": 20, "socket-dir": 8, "dir": 50, "dir-encrypted": 30}
    numbers_of |= {"postgresql": 8, "postgresql-encrypted": 6, "s3": 4, "s3-encrypted": 2}
    numbers_of |= {"objects": 30, "objects-encrypted": 20, "socket-sealed": 10}
    examples = numbers_of.get(scheme, 75)
    # A name of its own makes derandomized examples differ between the parts.
    Machine.__qualname__ = Machine.__name__ = f"Machine{part}"
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=examples if SOAK else examples // 2, stateful_step_count=40),
    )


def test_nothing_is_at_a_new_place(url: str) -> None:
    for writable in (False, True):
        with pytest.raises(NotFound):
            (open_writer if writable else open_reader)(url)


def test_second_writer_in_another_process_is_told_who_holds_the_backup(started: str) -> None:
    with open_writer(started), writer_elsewhere(started) as (_, said):
        assert said.startswith("WriterConflict")
        assert f"process {os.getpid()} " in said
    with writer_elsewhere(started) as (_, said):
        assert said == "open"


def test_writer_of_another_process_is_named(started: str) -> None:
    with writer_elsewhere(started) as (process, said):
        assert said == "open"
        with pytest.raises(WriterConflict, match=f"process {process.pid} "):
            open_writer(started)
        assert told_by(started) == told(started_node())


def test_sigkilled_writer_leaves_no_lock_behind(started: str) -> None:
    with writer_elsewhere(started) as (process, said):
        assert said == "open"
        process.send_signal(signal.SIGKILL)
        process.wait()
        append(started, [payment(4)])
    assert told_by(started) == told([*started_node(), payment(4)])


def test_close_gives_the_right_to_write_back(started: str) -> None:
    first = open_writer(started)
    first.close()
    append(started, [payment(4)])
    with writer_elsewhere(started) as (_, said):
        assert said == "open"


def test_close_twice_is_harmless(started: str) -> None:
    for writable in (False, True):
        backend = (open_writer if writable else open_reader)(started)
        backend.close()
        backend.close()


def test_backup_that_cannot_be_opened_is_not_locked(started: str) -> None:
    with pytest.raises(WriterConflict), open_writer(started):
        open_writer(started)
    with open_writer(started) as backend:
        backend.add_change(payment(4))


def test_readers_do_not_stop_the_writer(started: str) -> None:
    with open_reader(started) as one, open_reader(started) as other:
        append(started, payments(4, 7))
        assert told(one.stream_changes()) == told(started_node())
        assert told(other.stream_changes()) == told(started_node())
    assert told_by(started) == told([*started_node(), *payments(4, 7)])


def test_reader_that_a_rewind_overtook_tells_the_old_history_or_says_so(started: str) -> None:
    append(started, [payment(4, "never committed " * 50)])
    with open_reader(started) as reader:
        with open_writer(started) as writer:
            writer.rewind()
            add_all(writer, payments(4, 9))
        try:
            found = told(reader.stream_changes())
        except BackupError:
            return
        assert found == told([*started_node(), payment(4, "never committed " * 50)])


def test_streams_may_run_at_the_same_time(started: str) -> None:
    with open_reader(started) as backend:
        pairs = zip(backend.stream_changes(), backend.stream_changes(2), strict=False)
        assert [(a.version, b.version) for a, b in pairs] == [(1, 2), (1, 2), (2, 3)]


def test_empty_backup_has_no_head_and_nothing_to_drop(url: str) -> None:
    create_backend(url, None)
    with open_writer(url) as backend:
        assert backend.standing.head is None
        assert backend.last_change.at is None
        with open_reader(url) as reader:
            assert list(reader.stream_changes(head=False)) == []
        with pytest.raises(Discontinuity):
            backend.rewind()


def test_first_change_of_all_can_be_dropped(url: str) -> None:
    create_backend(url, None)
    append(url, started_node()[:1])
    with open_writer(url) as backend:
        backend.rewind()
        assert (backend.version, backend.standing.head, backend.standing.version_count) == (
            0,
            None,
            0,
        )
    assert told_by(url) == []
    append(url, started_node())
    assert told_by(url) == told(started_node())


def test_rewind_is_refused_twice_also_by_another_process(started: str) -> None:
    with open_writer(started) as backend:
        backend.rewind()
    with open_writer(started) as backend:
        with pytest.raises(Discontinuity):
            backend.rewind()
        backend.add_change(started_node()[-1])
        backend.rewind()


class _Shrinking:
    """A snapshot of a database that is cut while it is read."""

    size_bytes = 10_000

    def chunks(self) -> Iterator[bytes]:
        yield b"x" * 4_000


class _Failing:
    """A snapshot whose disk fails while it is read."""

    size_bytes = 10_000

    def chunks(self) -> Iterator[bytes]:
        yield b"x" * 4_000
        raise StorageError("the disk of the database failed")


@pytest.mark.parametrize("snapshot", [_Shrinking(), _Failing()], ids=["shrinking", "failing"])
def test_snapshot_that_fails_in_the_middle_leaves_no_new_backup(
    url: str, snapshot: _Shrinking | _Failing
) -> None:
    with pytest.raises(StorageError):
        create_backend(url, Change(7, snapshot, None))
    with pytest.raises(NotFound):
        open_reader(url)
    create_backend(url, None)


@pytest.mark.parametrize("snapshot", [_Shrinking(), _Failing()], ids=["shrinking", "failing"])
def test_snapshot_that_fails_in_the_middle_leaves_the_backup_as_it_was(
    started: str, snapshot: _Shrinking | _Failing
) -> None:
    with open_writer(started) as backend:
        with pytest.raises(StorageError):
            backend.add_change(Change(9, snapshot, None))
        with pytest.raises(StorageError):
            backend.add_change(payment(4))
    assert told_by(started) == told(started_node())
    append(started, [payment(4)])
    assert told_by(started) == told([*started_node(), payment(4)])


@stages
def test_compaction_keeps_the_head_and_what_came_meanwhile(started: str) -> None:
    with open_writer(started) as writer:
        with open_reader(started) as reader:
            base = Change(2, image("all before the head"), None)
            staged = prepared(reader, base, foreign_keys=True)
            add_all(writer, payments(4, 6))
            staged = reader.prepare_more(staged)
            add_all(writer, payments(6, 8))
            take_over(writer, staged)
        assert writer.standing.version_count == 6
        add_all(writer, payments(8, 9))
        expected = told([base, started_node()[-1], *payments(4, 9)])
        assert told_by(started) == expected
    assert told_by(started) == expected


@stages
def test_ticket_of_another_process_is_as_good(started: str) -> None:
    with open_writer(started) as writer:
        assert writer.take_over(None) is MoreNeeded.PREPARE
        with open_reader(started) as reader:
            base = Change(2, image("all before the head"), None)
            ticket = prepared(reader, base, foreign_keys=True)
        sent = pickle.loads(pickle.dumps(ticket))  # noqa: S301
        assert take_over(writer, sent)["after"] == ticket.after
        assert size_of(writer) == ticket.after
    assert told_by(started) == told([base, started_node()[-1]])


@stages
def test_head_can_be_dropped_right_after_a_compaction(started: str) -> None:
    with open_writer(started) as writer:
        with open_reader(started) as reader:
            base = Change(2, image("all before the head"), None)
            take_over(writer, prepared(reader, base, foreign_keys=True))
        writer.rewind()
        with open_reader(started) as reader:
            assert told(reader.stream_changes()) == told([base])
            assert list(reader.stream_changes(head=False)) == []
        writer.add_change(started_node()[-1])
    assert told_by(started) == told([base, started_node()[-1]])


@stages
def test_snapshot_can_be_dropped_right_after_a_compaction_to_it(started: str) -> None:
    head = Change(9, image("a fresh one"), None)
    append(started, [head])
    with open_writer(started) as writer:
        with open_reader(started) as reader:
            take_over(writer, prepared(reader, None, foreign_keys=True))
        assert told_by(started) == told([head])
        writer.rewind()
        assert (writer.version, writer.standing.head) == (0, None)
    assert told_by(started) == []


@stages
def test_compaction_with_foreign_keys_off_keeps_them_off(url: str) -> None:
    create_backend(url, None)
    history = started_node()[:3]
    append(url, history)
    base = Change(1, image("the tables"), None)
    with open_writer(url) as writer, open_reader(url) as reader:
        take_over(writer, prepared(reader, base, foreign_keys=False))
        assert writer.standing.head is not None
        assert not writer.standing.head.foreign_keys
    assert told_by(url) == told([base, *history[1:]])


@stages
def test_replacement_that_was_discarded_cannot_be_put_in_place(started: str) -> None:
    with open_writer(started) as writer:
        with open_reader(started) as reader:
            base = Change(2, image("all before the head"), None)
            staged = prepared(reader, base, foreign_keys=True)
        writer.discard()
        with pytest.raises(StorageError):
            take_over(writer, staged)
    assert told_by(started) == told(started_node())


@stages
def test_replacement_of_an_earlier_compaction_is_not_put_in_place(started: str) -> None:
    """Both have one name, because one process made them."""
    with open_writer(started) as writer, open_reader(started) as reader:
        base = Change(2, image("all before the head, in another way"), None)
        earlier = prepared(reader, base, foreign_keys=True)
        writer.discard()
        base = Change(2, image("all before the head"), None)
        with open_reader(started) as again:
            staged = prepared(again, base, foreign_keys=True)
        with pytest.raises(StorageError, match="the backup is unchanged"):
            take_over(writer, earlier)
        assert told_by(started) == told(started_node())
        take_over(writer, staged)
        assert told_by(started) == told([base, started_node()[-1]])


@stages
def test_leftover_of_a_compaction_is_gone_when_the_next_writer_opens(started: str) -> None:
    with open_reader(started) as reader:
        base = Change(2, image("all before the head"), None)
        prepared(reader, base, foreign_keys=True)
    append(started, [payment(4)])
    with open_reader(started) as reader:
        base = Change(3, image("all before the head"), None)
        ticket = prepared(reader, base, foreign_keys=True)
        reader.discard(ticket)
        prepared(reader, base, foreign_keys=True)
    assert told_by(started) == told([*started_node(), payment(4)])


@stages
def test_rewind_during_a_compaction_cannot_mix_two_histories(started: str) -> None:
    stale, base = payment(4, "never committed"), Change(3, image("all before"), None)
    append(started, [stale])
    with open_writer(started) as writer:
        with open_reader(started) as reader:
            staged = prepared(reader, base, foreign_keys=True)
        writer.rewind()
        add_all(writer, [payment(4, "committed " * 40), payment(5)])
        with contextlib.suppress(StorageError):
            take_over(writer, staged)
    found = told_by(started)
    assert found[-2:] == told([payment(4, "committed " * 40), payment(5)])


@stages
def test_files_are_readable_by_their_owner_only(started: str, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        append(started, [payment(4)])
        with open_writer(started) as writer:
            writer.rewind()
            with open_reader(started) as reader:
                base = Change(2, image("all before the head"), None)
                staged = prepared(reader, base, foreign_keys=True)
                _check_private(tmp_path)
                take_over(writer, staged)
        _check_private(tmp_path)
    finally:
        os.umask(before)


def _check_private(directory: Path) -> None:
    for path in directory.rglob("*"):
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path.name


def test_class_is_found_by_the_scheme(url: str, scheme: str) -> None:
    assert type(place_at(url)).__module__.startswith("cln_backup.backends.")
    assert url.startswith(f"{scheme.partition('-')[0]}:")


def test_backup_that_one_node_claimed_is_no_other_nodes(started: str) -> None:
    one, other = "02" + "11" * 32, "03" + "22" * 32
    for version in (4, 5):
        with open_writer(started) as backend:
            backend.claim(one)
            backend.add_change(payment(version))
            backend.claim(one)
            with pytest.raises(Discontinuity, match=one):
                backend.claim(other)
    with open_writer(started) as backend, pytest.raises(Discontinuity):
        backend.claim(other)
    assert told_by(started) == told([*started_node(), payment(4), payment(5)])


def test_node_that_was_refused_does_not_keep_the_right_one_out(started: str) -> None:
    """It came with another node's backup.lock, and its claim stayed though it wrote nothing."""
    one, other = "02" + "11" * 32, "03" + "22" * 32
    with open_writer(started) as backend:
        backend.claim(other)
        with pytest.raises(Discontinuity):
            backend.add_change(payment(9))
    with open_writer(started) as backend:
        backend.claim(one)
        backend.add_change(payment(4))
    with open_writer(started) as backend, pytest.raises(Discontinuity, match=one):
        backend.claim(other)


@stages
def test_claim_outlives_compaction_rewind_and_a_killed_writer(started: str) -> None:
    with open_writer(started) as writer:
        writer.claim("02")
        with open_reader(started) as reader:
            base = Change(2, image("all before the head"), None)
            take_over(writer, prepared(reader, base, foreign_keys=True))
        writer.rewind()
    with writer_elsewhere(started) as (process, said):
        assert said == "open"
        process.send_signal(signal.SIGKILL)
        process.wait()
    with open_writer(started) as backend, pytest.raises(Discontinuity):
        backend.claim("03")


def test_scratch_directory_is_there(started: str) -> None:
    with open_reader(started) as backend:
        for place in (backend.place.scratch_dir, backend.place.storage_dir):
            assert place is None or Path(place).is_dir()
