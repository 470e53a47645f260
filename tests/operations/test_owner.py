"""The node can read files that root makes for it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cln_backup.backends import open_reader, open_writer
from cln_backup.compaction.compact import compact
from cln_backup.operations.copy import copy
from cln_backup.operations.initialize import initialize, take_snapshot
from cln_backup.operations.keyring import key_file
from cln_backup.operations.restore import restore
from cln_backup.operations.verify import verify
from cln_backup.storage import fsio, ownership, scratch
from tests.histories import append, build_database, payments, started_node

_USER = 4711
_HISTORY = [*started_node(), *payments(4, 9)]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")


def _owners(directory: Path) -> set[int]:
    return {path.lstat().st_uid for path in directory.rglob("*")}


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """The network directory of a node of another user, with a place for its backup beside it."""
    directory = tmp_path / "node"
    directory.mkdir()
    build_database(directory / "lightningd.sqlite3", _HISTORY)
    (directory / "hsm_secret").write_bytes(bytes(range(32)))
    backups = tmp_path / "backups"
    backups.mkdir()
    for path in (directory, *directory.iterdir(), backups):
        os.chown(path, _USER, _USER)
    return directory


@as_root
@pytest.mark.parametrize("kind", ["dir", "encrypted", "file"])
def test_whatever_root_makes_is_the_nodes(kind: str, node: Path, tmp_path: Path) -> None:
    """`compact` as root: the node halted, since it could not read the new base."""
    backups = tmp_path / "backups"
    url = f"file://{backups}/node.bkp" if kind == "file" else f"dir://{backups}/node"
    url = initialize(url, str(node), encrypt=kind == "encrypted").backend_url
    append(url, payments(9, 14))
    database = node / "lightningd.sqlite3"
    database.unlink()
    build_database(database, [*_HISTORY, *payments(9, 16)])
    os.chown(database, _USER, _USER)
    take_snapshot(str(node))
    append(url, payments(16, 18))
    compact(url)
    with open_writer(url) as backend:
        backend.rewind()  # sets the head aside
    with open_reader(url) as backend:
        verify(backend, replayed=True)
        restore(backend, str(backups / "restored.sqlite3"))
    copy(url, f"dir://{backups}/copy")
    with key_file(str(backups / "new.key")):
        pass
    assert _owners(backups) | _owners(node) == {_USER}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in backups.rglob("*") if path.is_file()}
    assert modes == {0o600}


@as_root
def test_backup_in_a_directory_of_roots_is_the_nodes_as_well(node: Path, tmp_path: Path) -> None:
    done = initialize(f"dir://{tmp_path}/backup", str(node))
    assert (tmp_path / "backup").stat().st_uid == _USER
    assert _owners(tmp_path / "backup") == {_USER}
    assert not any("chown" in line for line in done.lacks)


@as_root
def test_node_that_cannot_make_files_beside_its_backup_is_told(node: Path, tmp_path: Path) -> None:
    """A `file:` backup needs room beside it for what a crash leaves."""
    done = initialize(f"file://{tmp_path}/node.bkp", str(node))
    assert any(f"chown {_USER} {tmp_path}" in line for line in done.lacks)
    assert (tmp_path / "node.bkp").stat().st_uid == _USER


@as_root
def test_what_replaces_a_file_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "backup.state"
    path.write_bytes(b"old")
    os.chown(path, _USER, _USER)
    fsio.write_file(str(path), b"new", op="write")
    assert path.read_bytes() == b"new"
    assert path.stat().st_uid == _USER


@as_root
def test_file_that_a_link_led_elsewhere_is_not_given_away(tmp_path: Path) -> None:
    """The owner of a directory must not get a file of another one by swapping the two."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for directory in (theirs, ours):
        directory.mkdir()
    os.chown(theirs, _USER, _USER)
    fd = fsio.create(str(ours / "file"), op="create")
    (theirs / "file").write_bytes(b"")
    ownership.give(fd, str(theirs / "file"))
    assert os.fstat(fd).st_uid == 0
    os.close(fd)


@as_root
def test_scratch_directory_is_the_nodes(tmp_path: Path) -> None:
    """A killed process leaves it, and the node must be able to remove it."""
    os.chown(tmp_path, _USER, _USER)
    with scratch.directory(str(tmp_path), op="compact") as place:
        assert Path(place).stat().st_uid == _USER


def test_who_cannot_give_a_file_to_its_owner_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root on a file system that keeps no owners, or as a user who is not root."""
    owner = os.stat_result((0o100600, 1, 1, 1, os.getuid() + 1, 0, 0, 0, 0, 0))

    def refused(_fd: int, _uid: int, _gid: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(ownership, "_look_at", lambda _path: owner)
    monkeypatch.setattr(os, "fchown", refused)
    for name in ("one", "two"):
        os.close(fsio.create(str(tmp_path / name), op="create", like=str(tmp_path / "old")))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert f"Cannot change the owner of the new files in {tmp_path} to" in said[0]
