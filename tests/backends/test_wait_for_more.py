"""A reader of any backend that waits for what a writer in another process stores."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.compaction.compact import compact
from cln_backup.model.errors import Discontinuity
from tests.backends.conformance import PLACES
from tests.histories import (
    add_all,
    append,
    long_text,
    payment,
    payments,
    started_node,
    told,
    wearing_payments,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cln_backup.backends.contract import Reader
    from cln_backup.model.position import Position
    from tests.histories import Told

_LONG_S = 120.0
"""A wait that nothing ends takes so long; a test that passes never does."""

_WRITER = """
import sys
from cln_backup.backends import open_writer
from tests.histories import payment
with open_writer(sys.argv[1]) as writer:
    print("open", flush=True)
    for line in sys.stdin:
        writer.add_change(payment(int(line)))
"""


@pytest.fixture(params=sorted(PLACES))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A backup of a node that has just made its tables."""
    url = PLACES[str(request.param)](tmp_path)
    create_backend(url, None)
    append(url, started_node())
    return url


@contextlib.contextmanager
def _writer_elsewhere(url: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, which appends a payment for each version in its input."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _WRITER, url]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.stdin.close()
        assert process.wait(_LONG_S) == 0


def _new(reader: Reader, since: Position) -> list[Told]:
    return told(reader.stream_changes(after=since))


def test_reader_is_woken_and_streams_just_what_is_new(url: str) -> None:
    with _writer_elsewhere(url) as writer, open_reader(url) as reader:
        assert writer.stdin is not None
        for version in range(4, 8):
            known = reader.standing.position
            writer.stdin.write(f"{version}\n")
            assert reader.wait_for_more(_LONG_S)
            assert reader.version == version
            assert reader.standing.position != known
            assert _new(reader, known) == told([payment(version)])
            assert _new(reader, reader.standing.position) == []
        assert told(reader.stream_changes()) == told([*started_node(), *map(payment, range(4, 8))])


def test_wait_ends_after_its_time_and_takes_no_processor(url: str) -> None:
    with open_reader(url) as reader:
        before = reader.standing
        spent_s = time.process_time()
        assert not reader.wait_for_more(1.0)
        assert time.process_time() - spent_s < 0.5
        assert reader.standing == before
        assert told(reader.stream_changes()) == told(started_node())


def test_what_came_before_the_wait_ends_it_at_once(url: str) -> None:
    with open_reader(url) as reader:
        known = reader.standing.position
        append(url, payments(4, 7))
        assert reader.wait_for_more(_LONG_S)
        assert _new(reader, known) == told(payments(4, 7))
        assert told(reader.stream_changes(after=known, head=False)) == told(payments(4, 6))


def test_dropped_head_is_no_position_any_more(url: str) -> None:
    """Its replacement has the same version, the same number, and the same length."""
    append(url, [payment(4, "never committed")])
    with open_reader(url) as reader:
        known = reader.standing.position
        with open_writer(url) as writer:
            writer.rewind()
            writer.add_change(payment(4, "was committed !"))
        assert reader.wait_for_more(_LONG_S)
        assert told(reader.stream_changes())[-1:] == told([payment(4, "was committed !")])
        with pytest.raises(Discontinuity, match="no longer in the backup"):
            _new(reader, known)
        with open_writer(url) as writer:
            writer.rewind()
        assert reader.wait_for_more(_LONG_S)
        with pytest.raises(Discontinuity, match="no longer in the backup"):
            _new(reader, known)


def test_position_of_before_a_compaction_is_found_or_said_to_be_gone(url: str) -> None:
    append(url, wearing_payments(4, 200))  # more than one segment of a directory
    with open_reader(url) as reader:
        known = reader.standing.position
        compact(url)
        assert reader.wait_for_more(_LONG_S)
        assert reader.standing.version_count < known.changes
        append(url, payments(200, 202))
        assert reader.wait_for_more(_LONG_S)
        try:
            found = _new(reader, known)
        except Discontinuity:
            assert not url.startswith("dir:")
        else:
            assert found == told(payments(200, 202))


def test_every_position_of_a_long_history(url: str) -> None:
    """Some of the changes fill a segment each."""
    texts = [long_text(number, 70_000 if number % 3 == 0 else 100) for number in range(8)]
    changes = [payment(version, text) for version, text in enumerate(texts, 4)]
    positions = []
    with open_reader(url) as reader:
        positions.append(reader.standing.position)
        with open_writer(url) as writer:
            for change in changes:
                add_all(writer, [change])
                assert reader.wait_for_more(_LONG_S)
                positions.append(reader.standing.position)
    with open_reader(url) as reader:
        for number, position in enumerate(positions):
            assert _new(reader, position) == told(changes[number:])


def test_standing_and_position_are_values(url: str) -> None:
    with open_writer(url) as writer:
        before = writer.standing
        writer.add_change(payment(4))
        assert (before.version, before.position.version) == (3, 3)
        assert writer.standing != before
        with pytest.raises((AttributeError, dataclasses.FrozenInstanceError)):
            before.version_count = 7  # type: ignore[misc]
        with pytest.raises((AttributeError, dataclasses.FrozenInstanceError)):
            before.position.version = 7  # type: ignore[misc]
