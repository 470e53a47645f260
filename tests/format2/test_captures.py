"""Recordings of real nodes, through the directory and back; and their size in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.model.change import Change
from cln_backup.operations.copy import copy
from cln_backup.operations.restore import restore
from cln_backup.replay.replica import DatabaseFile
from tests import captured
from tests.format2.small import KINDS, url_of
from tests.histories import assert_same_database, told, told_by

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def _stored(url: str, changes: Iterable[Change]) -> tuple[int, int]:
    """Appends the changes; returns the bytes of their SQL, and of the backup."""
    sql_bytes = 0
    with open_writer(url) as backend:
        for change in changes:
            backend.add_change(change)
            assert change.transaction is not None
            sql_bytes += sum(
                len(text.encode("utf-8", "surrogateescape")) for text in change.transaction
            )
        return sql_bytes, backend.size_bytes


def _restored(url: str, tmp_path: Path) -> Path:
    target = tmp_path / "restored.sqlite3"
    with open_reader(url) as backend:
        restore(backend, str(target))
        backend.check()
    return target


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", captured.SMALL)
def test_small_captures_come_back(kind: str, name: str, tmp_path: Path) -> None:
    url = url_of(kind, tmp_path)
    create_backend(url, None)
    capture = captured.COMMITTED / "small" / f"{name}.jsonl.xz"
    sql_bytes, stored_bytes = _stored(url, captured.changes(capture))
    expected = captured.unpacked(capture.with_name(f"{name}.sqlite3.xz"), tmp_path / "expected")
    assert_same_database(_restored(url, tmp_path), expected)
    assert sql_bytes / stored_bytes >= (10 if name == "router" else 6)


@pytest.mark.parametrize("kind", KINDS)
def test_payee_of_600_payments_comes_back_and_is_six_times_smaller(
    kind: str, tmp_path: Path, large_captures: Path
) -> None:
    url = url_of(kind, tmp_path)
    create_backend(url, None)
    capture = large_captures / "payments600" / "payee.jsonl.xz"
    sql_bytes, stored_bytes = _stored(url, captured.changes(capture))
    expected = captured.unpacked(capture.with_name("payee.sqlite3.xz"), tmp_path / "expected")
    assert_same_database(_restored(url, tmp_path), expected)
    assert sql_bytes / stored_bytes >= 6


@pytest.mark.parametrize("kind", KINDS)
def test_migrations_come_back(kind: str, tmp_path: Path, large_captures: Path) -> None:
    for directory in sorted((large_captures / "migrations").iterdir()):
        place = tmp_path / directory.name
        place.mkdir()
        before = captured.unpacked(directory / "before.sqlite3.xz", place / "before.sqlite3")
        calls = list(captured.changes(directory / "writes.jsonl.xz"))
        stands_at = calls[0].version - (calls[0].kind.value == "transaction")
        url = url_of(kind, place)
        create_backend(url, Change(stands_at, DatabaseFile(str(before)), None))
        _stored(url, calls)
        expected = captured.unpacked(directory / "after.sqlite3.xz", place / "expected")
        assert_same_database(_restored(url, place), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_backup_of_the_communitys_format_moves_over_and_back(kind: str, tmp_path: Path) -> None:
    capture = captured.COMMITTED / "small" / "payer.jsonl.xz"
    old, back = f"file://{tmp_path}/old", f"file://{tmp_path}/back"
    create_backend(old, None)
    _stored(old, captured.changes(capture))
    url = url_of(kind, tmp_path)
    copied = copy(old, url)
    assert copied.version_count == len(told_by(old))
    copy(url, back)
    assert told_by(url) == told(captured.changes(capture))
    assert (tmp_path / "back").read_bytes() == (tmp_path / "old").read_bytes()
