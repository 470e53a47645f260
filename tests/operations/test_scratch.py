"""Where the database of a compaction or a check is built, and what a killed one leaves."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import open_reader
from cln_backup.compaction.compact import compact
from cln_backup.model.errors import Locked, NotFound, StorageError
from cln_backup.operations.initialize import initialize
from cln_backup.operations.keyring import network_directory
from cln_backup.operations.verify import verify
from cln_backup.storage import scratch
from tests.histories import append, build_database, payments, started_node
from tests.plugin.home import Home

if TYPE_CHECKING:
    from pathlib import Path

    from cln_backup.model.change import Change

_HISTORY = [*started_node(), *payments(4, 9)]


@pytest.fixture
def node(tmp_path: Path) -> Path:
    directory = tmp_path / "node"
    directory.mkdir()
    build_database(directory / "lightningd.sqlite3", _HISTORY)
    return directory


def _dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def _left(place: Path, pid: int) -> Path:
    path = place / f".compact-{os.uname().nodename}-{pid}-abc_1"
    path.mkdir()
    (path / "replica.sqlite3").write_bytes(b"a node's database")
    return path


def test_replica_of_an_encrypted_backup_is_built_where_the_node_is(
    node: Path, tmp_path: Path
) -> None:
    """It was in /tmp, which is often memory, and stayed there until the next compaction."""
    url = initialize(f"dir://{tmp_path}/backup", str(node), encrypt=True).backend_url
    append(url, payments(9, 14))
    assert network_directory(url) == str(node)
    seen: set[Path] = set()

    def look(_change: Change) -> None:
        seen.update(path.parent for path in tmp_path.glob("*/.*/replica.sqlite3"))

    with open_reader(url) as backend:
        verify(backend, replayed=True, progress=look, scratch_dir=network_directory(url))
    compact(url, look, scratch_dir=network_directory(url))
    assert {path.parent for path in seen} == {node}
    assert {path.name.split("-")[0] for path in seen} == {".verify", ".compact"}
    assert not list(tmp_path.glob("*/.*"))


def test_key_file_that_lies_elsewhere_names_no_network_directory(
    node: Path, tmp_path: Path
) -> None:
    url = initialize(f"dir://{tmp_path}/backup", str(node), encrypt=True).backend_url
    (tmp_path / "stick").mkdir()
    (node / "backup.key").rename(tmp_path / "stick" / "backup.key")
    assert (
        network_directory(f"dir://{tmp_path}/backup?key-file={tmp_path}/stick/backup.key") is None
    )
    assert network_directory(f"dir://{tmp_path}/backup") is None
    assert network_directory("socket:localhost:8700") is None
    assert url


@pytest.mark.parametrize(
    ("chosen", "beside", "expected"),
    [("/", "/usr", "/"), (None, "/usr", "/usr"), (None, None, tempfile.gettempdir())],
)
def test_place_that_was_named_comes_first(
    chosen: str | None, beside: str | None, expected: str
) -> None:
    assert scratch.place(chosen, beside) == expected


def test_place_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        scratch.place(str(tmp_path / "none"), None)


def test_no_temporary_directory_is_an_error_that_says_what_to_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A container with a read-only root: a traceback."""

    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(StorageError, match=r"TMPDIR.*--scratch-dir"):
        scratch.place(None, None)


def test_directory_in_use_is_no_leftover(tmp_path: Path) -> None:
    path = _left(tmp_path, _dead_process())
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert scratch.leftovers(str(tmp_path)) == []
    os.close(fd)
    assert scratch.leftovers(str(tmp_path)) == [str(path)]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a directory of another user")
def test_directory_of_another_user_is_no_leftover(tmp_path: Path) -> None:
    """In /tmp, its maker could put a link to the node's files in its place before it is emptied."""
    path = _left(tmp_path, _dead_process())
    os.chown(path, 12_345, 12_345)
    assert scratch.leftovers(str(tmp_path)) == []
    os.chown(tmp_path, 12_345, 12_345)
    assert scratch.leftovers(str(tmp_path)) == [str(path)], "root gave it to the node"


def test_directory_is_locked_though_another_command_looks_for_leftovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stayed without a lock, and after a minute it counted as left by a killed process."""
    make = tempfile.mkdtemp
    looks = []

    def make_and_look(prefix: str, dir: str) -> str:  # noqa: A002 - as the original has it
        path = make(prefix=prefix, dir=dir)
        looker = os.open(path, os.O_RDONLY)
        fcntl.flock(looker, fcntl.LOCK_EX)
        looks.append(threading.Timer(0.05, os.close, [looker]))
        looks[0].start()
        return path

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_look)
    with scratch.directory(str(tmp_path), op="compact") as directory:
        looks[0].join()
        os.utime(directory, (0, 0))
        assert scratch.leftovers(str(tmp_path)) == []


def test_leftover_is_known_where_another_process_has_its_id_now(tmp_path: Path) -> None:
    """As in a container, where the next run gives the same ids."""
    path = _left(tmp_path, os.getpid())
    assert scratch.leftovers(str(tmp_path)) == [], "it may have been made just now"
    os.utime(path, (0, 0))
    assert scratch.leftovers(str(tmp_path)) == [str(path)]


def test_next_command_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    path = _left(tmp_path, _dead_process())
    other = tmp_path / f".compact-another-machine-{_dead_process()}-abc_1"
    other.mkdir()
    with scratch.directory(str(tmp_path), op="verify"):
        assert not path.exists()
    assert other.exists()


def test_node_that_starts_has_leftovers_removed(tmp_path: Path) -> None:
    home = Home(tmp_path, "dir-encrypted")
    home.init()
    path = _left(home.directory, _dead_process())
    node = home.start("--generate", "20", "--hold")
    home.wait_for_calls(20)
    deadline_s = time.monotonic() + 60
    while path.exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    home.call("backup-compact")
    home.call("stop")
    home.end(node)
    assert not list(home.directory.glob(".compact*"))


def test_unusable_secret_of_the_node_leaves_nothing(node: Path, tmp_path: Path) -> None:
    """The next `init` refused, since it found a finished backup."""
    before = {path.name for path in node.iterdir()} | {"hsm_secret"}
    (node / "hsm_secret").write_bytes(b"not a secret")
    url = f"dir://{tmp_path}/backup"
    with pytest.raises(Locked, match="hsm_secret"):
        initialize(url, str(node), encrypt=True)
    assert {path.name for path in node.iterdir()} == before
    assert not (tmp_path / "backup").exists()
    (node / "hsm_secret").write_bytes(bytes(range(32)))
    initialize(url, str(node), encrypt=True)


@pytest.mark.parametrize("step", ["add_key", "create_settings"])
def test_init_that_fails_late_leaves_nothing(
    step: str, node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (node / "hsm_secret").write_bytes(bytes(range(32)))
    before = {path.name for path in node.iterdir()}
    url = f"dir://{tmp_path}/backup"

    def failing(*_arguments: object) -> None:
        raise StorageError("Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(f"cln_backup.operations.initialize.{step}", failing)
        with pytest.raises(StorageError):
            initialize(url, str(node), encrypt=True)
    assert {path.name for path in node.iterdir()} == before
    assert not (tmp_path / "backup").exists()
    initialize(url, str(node), encrypt=True)
