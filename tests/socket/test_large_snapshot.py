"""Snapshots in many pieces, and beyond 4 GiB.

The wire has no limit there; format 1 has. So the wire is shown with a backend that has none.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

import cln_backup.backends
from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.model.change import Change
from cln_backup.model.errors import BadChange
from cln_backup.wire import packets as wire
from tests.histories import append, payment, started_node, told, told_by
from tests.soak import SOAK
from tests.socket.boundless import CountedSnapshot
from tests.socket.proxies import DOWN, UP, cut_after, proxy
from tests.socket.serving import server_here

if TYPE_CHECKING:
    from pathlib import Path

_GIB = 1 << 30
_LARGE_BYTES = 4 * _GIB + _GIB // 4 + 1

soak = pytest.mark.skipif(
    not SOAK,
    reason="CLN_BACKUP_SOAK is not set; takes minutes and 15 GB of disk",
)


@pytest.fixture(autouse=True)
def _boundless(monkeypatch: pytest.MonkeyPatch) -> None:
    place = ("tests.socket.boundless", "BoundlessPlace")
    monkeypatch.setitem(cln_backup.backends.SCHEMES, "boundless", place)


def _digest(change: Change) -> str:
    assert change.snapshot is not None
    digest = hashlib.blake2b()
    for chunk in change.snapshot.chunks():
        digest.update(chunk)
    return digest.hexdigest()


def _both_ways(tmp_path: Path, size: int, piece: int, cut_at: int) -> None:
    """Sends a snapshot through a cut, and has it back through another one."""
    sent = Change(7, CountedSnapshot(size, piece), None)
    with server_here() as server:
        there = server.add(f"boundless:{tmp_path}/large")
        query = there.partition("?")[2]
        with proxy(server.address.port, cut_after(UP, cut_at)) as between:
            create_backend(f"socket:127.0.0.1:{between.port}?{query}", sent)
            assert between.connections == 2
        assert os.path.getsize(tmp_path / "large" / "7") == size
        with (
            proxy(server.address.port, cut_after(DOWN, cut_at)) as between,
            open_reader(f"socket:127.0.0.1:{between.port}?{query}") as reader,
        ):
            assert [(_digest(change), change.version) for change in reader.stream_changes()] == [
                (_digest(sent), 7)
            ]
            assert between.connections == 2
        assert sorted(os.listdir(tmp_path / "large")) == ["7"]


@pytest.mark.parametrize("size", [1, 6, 7, 8, 14, 20_001])
def test_snapshot_in_tiny_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(wire, "CHUNK_BYTES", 7)
    _both_ways(tmp_path, size, 1024, cut_at=size // 2 + 100)


@soak
@pytest.mark.timeout(3600)
def test_snapshot_of_more_than_4_gib_with_a_cut_behind_4_gib(tmp_path: Path) -> None:
    _both_ways(tmp_path, _LARGE_BYTES, 1 << 20, cut_at=4 * _GIB + _GIB // 8)


@soak
@pytest.mark.timeout(3600)
def test_file_that_cannot_hold_a_snapshot_says_so_and_stays_as_it_is(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(url, started_node())
    with server_here() as server:
        there = server.add(url)
        with open_writer(there) as writer:
            with pytest.raises(BadChange, match="4 GiB"):
                writer.add_change(Change(9, CountedSnapshot(_LARGE_BYTES), None))
            writer.add_change(payment(4))
    assert told_by(url) == told([*started_node(), payment(4)])
