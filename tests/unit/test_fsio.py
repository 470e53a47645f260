from __future__ import annotations

import errno
import os
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from cln_backup.model.errors import AlreadyExists, StorageError
from cln_backup.storage import directories, fsio, giving_back, rename, scratch

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "file")


def _built(tmp_path: Path, content: bytes = b"built") -> str:
    (tmp_path / "built").write_bytes(content)
    return str(tmp_path / "built")


def test_new_file_is_private_and_closed_on_exec(path: str) -> None:
    before = os.umask(0)
    try:
        fd = fsio.create(path, op="create")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    assert not os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.parametrize("what", ["file", "link", "broken link", "directory"])
def test_create_takes_nothing_that_is_there(what: str, path: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if what == "directory":
        os.mkdir(path)
    elif what == "file":
        (tmp_path / "file").write_text("mine")
    else:
        if what == "link":
            target.write_text("mine")
        os.symlink(target, path)
    with pytest.raises((AlreadyExists, StorageError)):
        fsio.create(path, op="create")
    assert target.exists() == (what == "link")
    if what in {"file", "link"}:
        assert (tmp_path / "file").read_text() == "mine"


def test_file_beside_gets_a_name_that_is_free(path: str, tmp_path: Path) -> None:
    pid = os.getpid()
    (tmp_path / f"file.part-{pid}").write_text("mine")
    fd, name = fsio.create_beside(path, "part", op="create")
    os.close(fd)
    assert name == f"{path}.part-{pid}-1"
    assert (tmp_path / f"file.part-{pid}").read_text() == "mine"


def test_write_at_and_read_at(path: str) -> None:
    fd = fsio.create(path, op="create")
    assert fsio.write_at(fd, [b"ab", b"", b"cd"], 3, op="write") == 7
    assert fsio.read_at(fd, 100, 0, op="read") == b"\0\0\0abcd"
    assert fsio.read_at(fd, 2, 4, op="read") == b"bc"
    assert fsio.read_at(fd, 2, 99, op="read") == b""
    assert list(fsio.chunks_at(fd, 100, 3, op="read")) == [b"abcd"]
    fsio.truncate(fd, 4, op="cut")
    assert fsio.size_bytes(fd) == 4
    fsio.sync(fd, op="sync")
    os.close(fd)


def test_short_reads_are_continued(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = fsio.create(path, op="create")
    fsio.write_at(fd, [b"0123456789"], 0, op="write")
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(3, length), offset))
    assert fsio.read_at(fd, 9, 1, op="read") == b"123456789"
    assert fsio.read_at(fd, 99, 1, op="read") == b"123456789"
    os.close(fd)


def test_publish_gives_the_name_once(path: str, tmp_path: Path) -> None:
    fsio.publish(_built(tmp_path), path, op="publish")
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(AlreadyExists):
        fsio.publish(_built(tmp_path, b"other"), path, op="publish")
    assert (tmp_path / "file").read_bytes() == b"built"


@pytest.mark.parametrize("atomic", [True, False])
def test_publish_without_hard_links(
    atomic: bool, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_source: str, _target: str) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    if not atomic:
        monkeypatch.setattr(rename, "_function", lambda: None)
    fsio.publish(_built(tmp_path), path, op="publish")
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(AlreadyExists):
        fsio.publish(_built(tmp_path, b"other"), path, op="publish")
    assert (tmp_path / "file").read_bytes() == b"built"
    kept = fsio.keep(path, f"{path}.kept", op="keep")
    assert (tmp_path / "file.kept").read_bytes() == b"built"
    assert stat.S_IMODE(os.stat(kept).st_mode) == 0o600


def test_keep_never_overwrites(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one")
    names = [fsio.keep(path, f"{path}.kept", op="keep") for _ in range(3)]
    assert names == [f"{path}.kept", f"{path}.kept-2", f"{path}.kept-3"]


def test_write_file_replaces_or_refuses(path: str, tmp_path: Path) -> None:
    fsio.write_file(path, b"one", op="write", new=True)
    with pytest.raises(AlreadyExists):
        fsio.write_file(path, b"two", op="write", new=True)
    assert (tmp_path / "file").read_bytes() == b"one"
    fsio.write_file(path, b"two", op="write")
    assert (tmp_path / "file").read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]


def test_remove_of_what_is_not_there(path: str) -> None:
    fsio.remove(path, op="remove")


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "Free space"),
        (errno.EDQUOT, "Free space"),
        (errno.EACCES, "permissions"),
        (errno.EROFS, "ReadWritePaths"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_error_names_step_file_and_reason(
    number: int, hint: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = fsio.create(path, op="create")

    def failing(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwritev", failing)
    monkeypatch.setattr(os, "fdatasync", failing)
    for act in (
        lambda: fsio.write_at(fd, [b"x"], 0, op="append entry"),
        lambda: fsio.sync(fd, op="append entry"),
    ):
        with pytest.raises(StorageError, match=hint) as failed:
            act()
        assert "append entry" in str(failed.value)
        assert path in str(failed.value)
    os.close(fd)


def test_missing_file_and_missing_directory(path: str) -> None:
    with pytest.raises(StorageError, match="open it"):
        fsio.open_existing(path, writable=False, op="open it")
    with pytest.raises(StorageError, match="sync names"):
        fsio.sync_directory(path, op="sync names")
    with pytest.raises(StorageError):
        fsio.create(f"{path}/below", op="create")


def test_scratch_directory_goes_with_what_is_in_it(tmp_path: Path) -> None:
    with scratch.directory(str(tmp_path), op="try something") as place:
        assert os.path.dirname(place) == str(tmp_path)
        assert stat.S_IMODE(os.stat(place).st_mode) == 0o700
        with open(os.path.join(place, "file"), "w", encoding="ascii") as file:
            file.write("x")
    assert os.listdir(tmp_path) == []


def test_scratch_directory_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with scratch.directory(str(tmp_path), op="work") as one:
        with scratch.directory(str(tmp_path), op="work") as other:
            assert one != other
            assert os.path.isdir(one)
        assert os.path.isdir(one)


def test_scratch_directory_where_none_can_be_made(tmp_path: Path) -> None:
    with pytest.raises(StorageError), scratch.directory(str(tmp_path / "none"), op="work"):
        pass


def test_room(tmp_path: Path) -> None:
    scratch.require_room(str(tmp_path), op="work")
    with pytest.raises(StorageError, match="Free space"):
        scratch.require_room(str(tmp_path), op="work", needed_bytes=1 << 60)


_LARGE = b"a node's change" * 1_000_000


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths that files are cut to, while they are cut."""
    lengths: list[int] = []
    truncate = os.ftruncate

    def seen(fd: int, length: int) -> None:
        lengths.append(length)
        truncate(fd, length)

    monkeypatch.setattr(os, "ftruncate", seen)
    return lengths


def _opened(path: Path) -> int:
    return fsio.open_existing(str(path), writable=False, op="open")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file is freed at once")
def test_last_reader_of_a_file_without_a_name_gives_its_room_back_in_steps(
    tmp_path: Path, cuts: list[int]
) -> None:
    path = tmp_path / "backup"
    path.write_bytes(_LARGE)
    one, other = _opened(path), _opened(path)
    path.unlink()
    giving_back.close_reader(one)
    assert cuts == [], "the other still reads it"
    assert os.pread(other, len(_LARGE), 0) == _LARGE
    giving_back.close_reader(other)
    assert len(cuts) > 1
    assert cuts == sorted(cuts, reverse=True)


@pytest.mark.parametrize("name", ["backup", "second-name"])
def test_file_that_has_a_name_is_never_cut_by_its_reader(
    name: str, tmp_path: Path, cuts: list[int]
) -> None:
    path = tmp_path / "backup"
    path.write_bytes(_LARGE)
    fd = _opened(path)
    path.rename(tmp_path / name)
    giving_back.close_reader(fd)
    assert cuts == []
    assert (tmp_path / name).read_bytes() == _LARGE


def test_files_of_a_directory_give_their_room_back(tmp_path: Path) -> None:
    (tmp_path / "replica").write_bytes(_LARGE)
    (tmp_path / "empty").touch()
    scratch.empty(str(tmp_path), op="compact")
    assert (tmp_path / "replica").stat().st_size < len(_LARGE)


def test_missing_directories_are_made_private_one_by_one(tmp_path: Path) -> None:
    directories.make_with_parents(f"{tmp_path}/a/b/c/", op="make")
    directories.make_with_parents(f"{tmp_path}/a/b/c", op="make")
    for name in ("a", "a/b", "a/b/c"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700


def test_a_file_among_the_directories_to_make_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AlreadyExists, match="file exists; it was not changed"):
        directories.make_with_parents(f"{tmp_path}/file/a/b", op="make")
