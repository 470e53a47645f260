"""Back to an earlier version, for a migration that was cut in the middle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader
from cln_backup.compaction.compact import compact
from cln_backup.model.change import Change
from cln_backup.model.errors import NotFound
from cln_backup.operations.restore import Restored, restore
from tests import captured
from tests.disasters.places import KINDS, url_in
from tests.histories import (
    OFF,
    ON,
    append,
    assert_same_database,
    build_database,
    payment,
    payments,
    rider,
    snapshot_of,
    started_node,
    transaction,
)

if TYPE_CHECKING:
    from pathlib import Path

HISTORY = [
    *started_node(),
    transaction(4, "INSERT INTO peers (id) VALUES (1)", "INSERT INTO channels VALUES (1, 1)"),
    rider(4, OFF),
    transaction(5, "DROP TABLE peers"),
    payment(6),
    rider(6, ON),
    payment(7),
]


@pytest.fixture(params=KINDS)
def empty(request: pytest.FixtureRequest, memory_path: Path) -> str:
    """An unused place for each kind of backup."""
    place = memory_path / "backup"
    place.mkdir(mode=0o700)
    return url_in(place, request.param)


@pytest.fixture
def url(empty: str) -> str:
    create_backend(empty, None)
    append(empty, HISTORY)
    return empty


def _restore(url: str, target: Path, to: int) -> Restored:
    with open_reader(url) as backend:
        return restore(backend, str(target), to=to)


@pytest.mark.parametrize("to", range(1, 8))
def test_database_is_what_it_was_then(url: str, to: int, tmp_path: Path) -> None:
    kept = [change for change in HISTORY if change.version <= to]
    restored = _restore(url, tmp_path / "restored.sqlite3", to)
    assert (restored.version, restored.version_count) == (to, len(kept))
    assert_same_database(restored.path, build_database(tmp_path / "expected", kept))


@pytest.mark.parametrize("to", [0, 8, 2**31])
def test_version_that_was_never_stored(url: str, to: int, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    with pytest.raises(NotFound):
        _restore(url, tmp_path / "restored.sqlite3", to)
    assert set(tmp_path.iterdir()) == before


def test_version_that_was_folded_or_missed(url: str, tmp_path: Path) -> None:
    base = snapshot_of([*started_node(), *payments(4, 20)], tmp_path / "base.sqlite3")
    append(url, [base, payment(20)])
    for to in (8, 18):
        with pytest.raises(NotFound):
            _restore(url, tmp_path / "restored.sqlite3", to)
    assert _restore(url, tmp_path / "at-the-snapshot", 19).version == 19
    assert _restore(url, tmp_path / "before-it", 7).version == 7
    compact(url)
    with pytest.raises(NotFound):
        _restore(url, tmp_path / "restored.sqlite3", 7)
    assert _restore(url, tmp_path / "again", 19).version == 19


def test_two_snapshots_of_one_version(empty: str, tmp_path: Path) -> None:
    url = empty
    base = snapshot_of(started_node(), tmp_path / "base.sqlite3")
    create_backend(url, base)
    append(url, [Change(3, base.snapshot, None), payment(4)])
    assert _restore(url, tmp_path / "restored.sqlite3", 3).version_count == 2


def test_recorded_node_at_some_versions(empty: str, memory_path: Path) -> None:
    url = empty
    history = list(captured.changes(captured.COMMITTED / "small" / "payee.jsonl.xz"))
    create_backend(url, None)
    append(url, history)
    for to in (1, 2, 3, 10, 100, 200, history[-1].version):
        target = memory_path / f"restored-{to}"
        _restore(url, target, to)
        kept = [change for change in history if change.version <= to]
        assert_same_database(target, build_database(memory_path / f"expected-{to}", kept))
