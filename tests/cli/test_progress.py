"""The progress bar of long work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup.backends import create_backend, open_reader
from cln_backup.backends.ticket import size_of
from cln_backup.cli.presentation import Meter
from cln_backup.replay.ahead import _MANY_CHANGES
from tests.cli.test_secrets import _on_a_terminal
from tests.histories import append, payments, snapshot_of, started_node
from tests.seed_file import SeedFile

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_bytes_count_and_not_changes(tmp_path: Path) -> None:
    history = [*started_node(), *payments(4, 30)]
    base = snapshot_of(history, tmp_path / "base.sqlite3")
    assert base.snapshot is not None
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, base)
    append(url, payments(30, 40))
    with open_reader(url) as backend:
        meter = Meter(size_of(backend), passes=2)
        changes, stored_bytes = list(backend.stream_changes()), backend.size_bytes
    done = []
    for change in changes:
        meter.add(change)
        done.append(meter.done_bytes / meter.total_bytes)
    assert base.snapshot.size_bytes < meter.done_bytes < stored_bytes
    assert done[-1] == 0.5
    assert done[0] > 2 / len(changes), "the first one is a snapshot, and larger than the others"
    for change in changes:
        meter.add(change)
    assert meter.done_bytes == meter.total_bytes


def test_copy_and_restore_show_a_bar_on_a_terminal(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(url, [*started_node(), *payments(4, 30)])
    for arguments in (
        ("copy", url, f"dir://{tmp_path}/copy"),
        ("restore", url, tmp_path / "restored.sqlite3"),
    ):
        code, shown = _on_a_terminal(*arguments)
        assert code == 0
        assert "kB" in shown


def test_restore_on_a_terminal_reads_ahead_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It forked beside a thread of the bar, which Python warns of from 3.12 on."""
    count = 4_200
    assert count > _MANY_CHANGES
    seed = SeedFile.create(tmp_path / "node.bkp")
    for change in [*started_node(), *payments(4, count)]:
        seed.append(change)
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    code, shown = _on_a_terminal("restore", seed.path, tmp_path / "restored.sqlite3")
    assert code == 0, shown
    assert "kB" in shown
    assert "Warning" not in shown
