"""A reader that follows a backup through appends, drops, compactions and new writers."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader
from cln_backup.model.change import Kind
from cln_backup.model.errors import Discontinuity
from tests.backends.conformance import PLACES
from tests.histories import append, payments, started_node, told
from tests.random_node import RandomNode

if TYPE_CHECKING:
    from pathlib import Path

    from cln_backup.backends.contract import Reader
    from cln_backup.model.position import Position
    from tests.histories import Told

_STEPS = 40


class _Follower:
    """Keeps the same history by what a reader tells it.

    Attributes:
        found: the changes by their numbers; a snapshot that replaces earlier ones is left out.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._positions: list[Position] = []
        self.found: dict[int, Told] = {}
        self._read_from_start()

    def look(self) -> None:
        """Takes up what is new, if anything is."""
        if self._reader.wait_for_more(0):
            self._take_up()

    def _take_up(self) -> None:
        while self._positions:
            known = self._positions[-1]
            try:
                new = told(self._reader.stream_changes(after=known))
            except Discontinuity:
                self._positions.pop()
                continue
            self.found = {n: change for n, change in self.found.items() if n <= known.changes}
            self._number(new)
            return
        self._read_from_start()

    def _read_from_start(self) -> None:
        self.found = {}
        self._number(told(self._reader.stream_changes()))

    def _number(self, new: list[Told]) -> None:
        position = self._reader.standing.position
        self._positions.append(position)
        for number, change in enumerate(new, position.changes - len(new) + 1):
            if change.kind is not Kind.SNAPSHOT:
                self.found[number] = change


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", sorted(PLACES))
def test_follower_has_the_history_of_the_node(kind: str, seed: int, tmp_path: Path) -> None:
    url = PLACES[kind](tmp_path)
    create_backend(url, None)
    chance = random.Random(seed)
    # In a file, a compaction changes the numbers of the changes.
    node = RandomNode(url, chance, compacts=kind.startswith("dir"))
    with open_reader(url) as reader:
        follower = _Follower(reader)
        for _ in range(_STEPS):
            node.step()
            if chance.random() < 0.4:
                follower.look()
        follower.look()
        node.close()
        expected = dict(enumerate(told(node.history), 1))
        assert reader.standing.position.changes == len(expected)
        first = min(follower.found)
        if first > 1 and follower.found[first].kind is Kind.RIDER:
            expected[first] = follower.found[first]  # it may be a compaction's, after its snapshot
        assert follower.found == {n: expected[n] for n in follower.found}
        assert max(follower.found) == len(expected)
        assert len(follower.found) == len(expected) - first + 1


_DROPPER = """
import sys, time
from cln_backup.backends import open_writer
from tests.histories import long_text, payment
with open_writer(sys.argv[1]) as writer:
    for number in range(120):
        writer.add_change(payment(1000, long_text(number, 1000 * (number % 7))))
        writer.rewind()
        if number % 8 == 0:  # no node drops without end: there is time for one whole scan
            time.sleep(0.1)
"""


def test_reader_of_a_file_whose_writer_drops_finds_no_damage(tmp_path: Path) -> None:
    """The file is long, so that it changes while the reader scans it."""
    url = PLACES["file"](tmp_path)
    history = [*started_node(), *payments(4, 1000)]
    create_backend(url, None)
    append(url, history)
    with (
        subprocess.Popen([sys.executable, "-c", _DROPPER, url]) as writer,
        open_reader(url) as reader,
    ):
        while writer.poll() is None:
            reader.wait_for_more(0)
            assert reader.version in (999, 1000)
        reader.wait_for_more(0)
        assert told(reader.stream_changes()) == told(history)
    assert writer.returncode == 0
