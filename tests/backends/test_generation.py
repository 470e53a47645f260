"""The size of a backup's current generation: what a compaction keeps, and what it folds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer, place_at
from cln_backup.compaction.compact import compact
from tests.disasters.places import KINDS, url_in
from tests.histories import append, payments, snapshot_of, started_node, wearing_payments

if TYPE_CHECKING:
    from pathlib import Path

    from cln_backup.backends.ticket import Generation


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place = tmp_path / "backup"
    place.mkdir()
    return url_in(place, str(request.param))


def _generation(url: str) -> Generation:
    with open_reader(url) as reader:
        seen = reader.generation()
        size_bytes, count = reader.size_bytes, reader.standing.version_count
    with open_writer(url) as writer:
        assert writer.generation() == seen
    assert seen is not None
    assert seen.base_bytes + seen.log_bytes <= size_bytes
    assert seen.log_changes <= count
    return seen


def test_backup_that_starts_empty(url: str) -> None:
    create_backend(url, None)
    assert _generation(url)[:3] == (0, 0, 0)
    append(url, started_node())
    few = _generation(url)
    assert (few.base_bytes, few.log_changes) == (0, 5)
    append(url, wearing_payments(4, 400))
    many = _generation(url)
    assert many.log_bytes > few.log_bytes + 400_000
    assert many.log_changes == 5 + 396


def test_compaction_folds_the_log(url: str) -> None:
    create_backend(url, None)
    append(url, [*started_node(), *wearing_payments(4, 200)])
    before = _generation(url)
    compact(url)
    after = _generation(url)
    assert after.base_bytes > 0
    assert after.log_bytes < before.log_bytes / 20
    assert after.log_changes == 1
    append(url, payments(200, 210))
    later = _generation(url)
    assert (later.base_bytes, later.log_changes) == (after.base_bytes, 11)
    assert later.log_bytes > after.log_bytes


def test_backup_that_starts_with_a_snapshot(url: str, tmp_path: Path) -> None:
    history = [*started_node(), *payments(4, 9)]
    base = snapshot_of(history, tmp_path / "base.sqlite3")
    create_backend(url, base)
    found = _generation(url)
    assert found.base_bytes > 0
    assert (found.log_bytes, found.log_changes) == (0, 0)
    append(url, payments(9, 10))
    # A snapshot that closes a gap belongs to the log: a compaction makes it the base.
    missed = [*history, *payments(9, 20)]
    append(url, [snapshot_of(missed, tmp_path / "missed.sqlite3")])
    assert _generation(url).log_bytes > found.base_bytes / 2
    assert _generation(url).log_changes == 2


def test_replaced_generations_do_not_count(tmp_path: Path) -> None:
    url = f"dir://{tmp_path}/backup?keep=2"
    create_backend(url, None)
    assert place_at(url).keeps == (2, 0)
    append(url, [*started_node(), *wearing_payments(4, 200)])
    compact(url)
    found = _generation(url)
    with open_reader(url) as reader:
        assert found.base_bytes + found.log_bytes < reader.size_bytes / 2
