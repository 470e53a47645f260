"""Pieces that a thread reads ahead: in order, bounded, with errors, and stopped in the middle."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from cln_backup.model.errors import Damaged
from cln_backup.storage import writeback
from cln_backup.storage.in_thread import read_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def _threads() -> int:
    """The threads that read ahead; those of servers in earlier tests may just be ending."""
    return sum(thread.name == "reads ahead" for thread in threading.enumerate())


def test_all_pieces_come_in_order() -> None:
    before = _threads()
    with read_in_thread(iter(range(1000))) as pieces:
        assert list(pieces) == list(range(1000))
    assert _threads() == before


def test_only_a_few_are_read_ahead() -> None:
    asked: list[int] = []
    taken = threading.Event()

    def numbers() -> Iterator[int]:
        for number in range(1000):
            asked.append(number)
            if len(asked) == 3:
                taken.set()
            yield number

    with read_in_thread(numbers()) as pieces:
        assert next(pieces) == 0
        assert taken.wait(60)
        assert len(asked) <= 4


def test_an_error_comes_after_the_pieces_before_it() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        yield 2
        raise Damaged("broken", offset_bytes=7)

    found: list[int] = []
    with pytest.raises(Damaged, match="broken"), read_in_thread(numbers()) as pieces:
        found.extend(pieces)
    with read_in_thread(numbers()) as pieces:
        assert [next(pieces), next(pieces)] == [1, 2]


def test_it_stops_in_the_middle_and_closes_what_it_read() -> None:
    closed = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.append(True)

    before = _threads()
    source = numbers()
    with read_in_thread(source) as pieces:
        next(pieces)
        assert _threads() == before + 1
    assert _threads() == before
    source.close()  # type: ignore[attr-defined]
    assert closed == [True]


def test_the_way_to_the_disk_may_begin_at_any_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file:
        file.write(bytes(100_000))
        writeback.begin(file.fileno(), 0, 4096)
        writeback.begin(file.fileno())
        writeback.begin(file.fileno(), 1 << 40, 1)
    assert path.stat().st_size == 100_000
