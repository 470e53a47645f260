"""The position of a backup on a server is that of the backup itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.compaction.compact import compact
from tests.histories import append, payment, started_node, wearing_payments
from tests.socket.serving import server_here

if TYPE_CHECKING:
    from pathlib import Path

    from cln_backup.model.position import Position


def _position(url: str) -> Position:
    with open_reader(url) as reader:
        return reader.standing.position


@pytest.mark.parametrize("scheme", ["dir", "file"])
def test_position_over_a_server_is_that_of_the_backup(scheme: str, tmp_path: Path) -> None:
    """For readers and the writer, after changes, a drop and a compaction; none in `file:`."""
    here = f"{scheme}://{tmp_path}/backup"
    create_backend(here, None)
    append(here, started_node())
    with server_here() as server:
        there = server.add(here)
        with open_writer(there) as writer:
            for change in wearing_payments(4, 20):
                writer.add_change(change)
            assert writer.standing.position == _position(here) == _position(there)
            writer.rewind()
            assert writer.standing.position == _position(here) == _position(there)
            writer.add_change(payment(19, "another"))
        before = _position(there)
        assert before.version == 19
        assert (before.digest is None) == (scheme == "file")
        compact(there)
        after = _position(there)
        assert after == _position(here)
    # Folded changes still count in `dir:`, but not in `file:`.
    assert (after == before) == (scheme == "dir")


def test_reader_at_a_server_goes_on_from_a_position_after_a_compaction(tmp_path: Path) -> None:
    """Its numbers count what was merged, the stream begins with the snapshot."""
    here = f"dir://{tmp_path}/backup"
    create_backend(here, None)
    append(here, [*started_node(), *wearing_payments(4, 20)])
    with server_here() as server:
        there = server.add(here)
        compact(there)
        at = _position(there)
        append(there, [payment(20), payment(21)])
        with open_reader(there) as reader:
            assert [change.version for change in reader.stream_changes(after=at)] == [20, 21]
