"""A migration that is interrupted, the whole way: node, plugin, `undo-migration`, both releases."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend
from tests.histories import long_text, payment, payments, transaction
from tests.operations.test_undo_migration import BEFORE, MIGRATION, SET
from tests.plugin.home import Home, processes_of
from tests.soak import SOAK
from tests.socket.serving import server_process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cln_backup.model.change import Change

_LARGE_MB = 50 if SOAK else 6


def capture(path: Path, changes: Sequence[Change]) -> str:
    with path.open("w") as file:
        for number, change in enumerate(changes):
            call = {"t": number, "data_version": change.version, "writes": change.transaction}
            file.write(json.dumps(call) + "\n")
    return str(path)


def _point(home: Home) -> int | None:
    found = json.loads((home.directory / "backup.state").read_text())["restore_point"]
    return None if found is None else found["version"]


@pytest.fixture
def node(home: Home, tmp_path: Path) -> Home:
    """A node of the old release, which was up; it is at version 8."""
    home.init()
    home.run("--capture", capture(tmp_path / "old.jsonl", BEFORE))
    home.database.with_name("before").write_bytes(home.database.read_bytes())
    return home


@pytest.mark.parametrize(
    ("kind", "crash", "then"),
    [
        ("dir", "in-commit@{}:step=done", 0),
        ("dir-encrypted", "in-commit@{}:step=done", 2),
        ("file", "after-answer@{}", 2),
        ("dir", "in-commit@{}:step=delete", 4),
    ],
)
def test_cut_and_undone_and_migrated(node: Home, tmp_path: Path, crash: str, then: int) -> None:
    home = node
    new = capture(tmp_path / "new.jsonl", [*BEFORE, *MIGRATION])
    home.run("--capture", new, "--crash", crash.format(len(BEFORE) + then), code=None)
    assert _point(home) == 8
    said = home.cli("undo-migration", "--lightning-dir", str(home.directory))
    assert "to 8, before the migration" in said
    assert _point(home) is None
    home.require_same(home.database, home.database.with_name("before"))
    if then % 4 == 0:  # the old release starts again
        new = capture(tmp_path / "again.jsonl", [*BEFORE, transaction(9, SET), payment(10)])
    home.run("--capture", new)
    home.require_same(home.database)
    assert _point(home) is None
    assert "lost some state" not in home.log()
    assert "Backup is out of date" not in home.log()
    home.cli("undo-migration", "--lightning-dir", str(home.directory), code=4)
    home.require_same(home.database)


@pytest.mark.parametrize("scheme", ["dir", "file"])
def test_cut_and_undone_and_migrated_on_a_server(tmp_path: Path, scheme: str) -> None:
    there = f"{scheme}://{tmp_path}/there"
    create_backend(there, None)
    with server_process(there, follows=True) as server:
        home = Home(tmp_path / "home")
        home.url = server.url
        home.init()
        home.run("--capture", capture(tmp_path / "old.jsonl", BEFORE))
        before = home.database.with_name("before")
        before.write_bytes(home.database.read_bytes())
        new = capture(tmp_path / "new.jsonl", [*BEFORE, *MIGRATION])
        home.run("--capture", new, "--crash", f"after-answer@{len(BEFORE) + 2}", code=None)
        said = home.cli("undo-migration", "--lightning-dir", str(home.directory))
        assert "to 8, before the migration" in said
        assert "on the server, whose log has the path" in said
        home.require_same(home.database, before)
        home.run("--capture", new)
        home.require_same(home.database)
        assert "lost some state" not in home.log()
        home.cli("undo-migration", "--lightning-dir", str(home.directory), code=4)
    assert "Its earlier history, up to 10, is kept in" in "".join(server.said)


@pytest.mark.parametrize("kind", ["dir", "file"])
def test_point_of_a_former_backup_is_not_used(node: Home, tmp_path: Path) -> None:
    """The node moves to another backup in the middle of a migration, and back."""
    home, former = node, node.url
    new = capture(tmp_path / "new.jsonl", [*BEFORE, *MIGRATION])
    home.run("--capture", new, "--crash", f"after-answer@{len(BEFORE) + 2}", code=None)
    assert _point(home) == 8
    (home.directory / "backup.lock").rename(tmp_path / "former.lock")
    home.url = f"dir://{tmp_path}/next"
    home.init()
    assert _point(home) is None
    home.run("--capture", new, "--crash", f"after-answer@{len(BEFORE) + 3}", code=None)
    moved_at = _point(home)
    assert moved_at is not None
    assert moved_at > 8
    (tmp_path / "former.lock").rename(home.directory / "backup.lock")
    undo = ("undo-migration", "--lightning-dir", str(home.directory))
    assert "to 8, before the migration" in home.cli(*undo)
    home.url = former
    home.require_same(home.database, home.database.with_name("before"))
    home.run("--capture", new)
    assert _point(home) is None
    home.require_same(home.database)


@pytest.mark.parametrize("kind", ["dir"])
def test_init_ends_it(node: Home, tmp_path: Path) -> None:
    """The migration and the changes after it come before `init`; then the way back is closed."""
    home = node
    new = capture(tmp_path / "new.jsonl", [*BEFORE, *MIGRATION])
    process = home.start("--capture", new, "--hold", "--before-init", str(len(MIGRATION)))
    home.wait_for_calls(len(BEFORE) + len(MIGRATION))
    home.call("backup-status")
    assert _point(home) is None
    assert "A migration of the database begins" in home.log()
    home.call("stop")
    home.end(process)
    home.cli("undo-migration", "--lightning-dir", str(home.directory), code=4)


@pytest.mark.parametrize("kind", ["dir"])
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_migration_as_one_very_large_transaction(node: Home, tmp_path: Path) -> None:
    """Memory has room for one transaction, a few times over, and for no database."""
    home = node
    pieces = [
        f"INSERT INTO large VALUES (x'{long_text(number, 1 << 17)}')"
        for number in range(_LARGE_MB * 8)
    ]
    large = transaction(9, "CREATE TABLE large (content BLOB)", *pieces, SET)
    new = capture(tmp_path / "new.jsonl", [*BEFORE, large, *payments(10, 14)])
    process = home.start("--capture", new, "--hold", "--before-init", "3")
    home.wait_for_calls(len(BEFORE) + 5)
    worker, guard = processes_of(process.pid)
    peaks = [_peak_mb(worker), _peak_mb(guard)]
    home.call("stop")
    home.end(process)
    home.require_same(home.database)
    assert peaks[0] < 60 + 8 * _LARGE_MB, peaks
    assert peaks[1] < 60, peaks


def _peak_mb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10
