"""What a bar shows of long work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup.backends import create_backend, open_backend
from cln_backup.backends.contract import size_of
from cln_backup.cli.presentation import Meter
from tests.cli.test_secrets import _on_a_terminal
from tests.histories import append, payments, snapshot_of, started_node

if TYPE_CHECKING:
    from pathlib import Path


def test_bytes_count_and_not_changes(tmp_path: Path) -> None:
    history = [*started_node(), *payments(4, 30)]
    base = snapshot_of(history, tmp_path / "base.sqlite3")
    assert base.snapshot is not None
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, base)
    append(url, payments(30, 40))
    with open_backend(url) as backend:
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
