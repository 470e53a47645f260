"""File systems that lack something: locks, a sync of directories, hard links."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cln_backup.backends import open_reader, open_writer
from cln_backup.compaction.compact import compact
from cln_backup.model.errors import StorageError
from cln_backup.operations.copy import copy
from cln_backup.operations.initialize import initialize
from cln_backup.operations.restore import restore
from cln_backup.operations.verify import verify
from cln_backup.storage import file_system, fsio, mounts
from cln_backup.storage.mounts import Mount, mount_of
from cln_backup.storage.os_errors import storage_errors
from tests.histories import append, assert_same_database, build_database, payments, started_node

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_HISTORY = [*started_node(), *payments(4, 9)]


class _Node(NamedTuple):
    directory: Path
    place: Path
    url: str


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On the disk, whose file system is what is tested."""
    return tmp_path_factory.mktemp("test")


@pytest.fixture(params=["dir", "file"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> _Node:
    directory, place = tmp_path / "node", tmp_path / "place"
    directory.mkdir()
    place.mkdir()
    build_database(directory / "lightningd.sqlite3", _HISTORY)
    name = "backup" if request.param == "dir" else "node.bkp"
    return _Node(directory, place, f"{request.param}://{place}/{name}")


def _no_locks(number: int) -> Callable[[int, int], None]:
    def refused(_fd: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    return refused


def _directory_sync_fails(number: int) -> Callable[[int], None]:
    fsync = os.fsync

    def failing(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(fd)

    return failing


def _link_that_copies(source: str, target: str) -> None:
    """As sshfs makes one: another file with the same bytes."""
    with open(source, "rb") as read, open(target, "xb") as written:
        written.write(read.read())


def _no_links(_source: str, _target: str) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_file_system_without_locks_is_refused_by_init_and_left_empty(
    number: int, node: _Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`init` said ready, and the first write halted the node."""
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", _no_locks(number))
        with pytest.raises(StorageError, match=r"has no locks.*Choose a place"):
            initialize(node.url, str(node.directory))
    assert list(node.place.iterdir()) == []
    assert [path.name for path in node.directory.iterdir()] == ["lightningd.sqlite3"]


def _whole_life(node: _Node) -> None:
    lacks = initialize(node.url, str(node.directory)).lacks
    assert all("cannot sync a directory" in line for line in lacks)
    append(node.url, payments(9, 14))
    compact(node.url)
    append(node.url, payments(14, 16))
    with open_writer(node.url) as backend:
        backend.rewind()
    copy(node.url, f"dir://{node.place}/copy")
    target = node.place / "restored.sqlite3"
    with open_reader(node.url) as backend:
        verify(backend, replayed=True)
        done = restore(backend, str(target))
    assert [line[:15] for line in done.notices] == ["The file system"] * len(lacks)
    expected = build_database(node.place / "expected", [*_HISTORY, *payments(9, 15)])
    assert_same_database(target, expected)
    names = {path.name for path in node.place.iterdir()}
    assert not [name for name in names if "unfinished" in name or "restoring" in name]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP])
def test_file_system_that_syncs_no_directories_is_used_and_told(
    number: int, node: _Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`init file:` and `restore` failed, with the whole result under its final name."""
    monkeypatch.setattr(os, "fsync", _directory_sync_fails(number))
    assert not file_system.syncs_names(str(node.place))
    _whole_life(node)


@pytest.mark.parametrize("link", [_no_links, _link_that_copies])
def test_file_system_without_hard_links_is_as_good(
    link: Callable[[str, str], None], node: _Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", link)
    _whole_life(node)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_directory_that_fails_to_sync_keeps_no_result_that_a_retry_finds(
    number: int, node: _Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _directory_sync_fails(number))
        with pytest.raises(StorageError):
            initialize(node.url, str(node.directory))
    assert list(node.place.iterdir()) == []
    initialize(node.url, str(node.directory))
    target = node.place / "restored.sqlite3"
    with open_reader(node.url) as backend:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _directory_sync_fails(number))
            with pytest.raises(StorageError):
                restore(backend, str(target))
        assert not target.exists()
        restore(backend, str(target))
    assert_same_database(target, node.directory / "lightningd.sqlite3")


def test_name_that_cannot_be_taken_away_again_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, path = tmp_path / "built", str(tmp_path / "file")
    built.write_bytes(b"whole")
    unlink = os.unlink

    def stuck(name: str) -> None:
        if name == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(name)

    monkeypatch.setattr(os, "fsync", _directory_sync_fails(errno.EIO))
    monkeypatch.setattr(os, "unlink", stuck)
    with pytest.raises(StorageError, match=r"is complete, but its name may be lost"):
        fsio.publish(str(built), path, op="publish")


def test_claimed_name_stays_where_the_directory_fails_to_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer may go by the name of a segment from the moment that it is there."""
    (tmp_path / "built").touch()
    monkeypatch.setattr(os, "fsync", _directory_sync_fails(errno.EIO))
    with pytest.raises(StorageError):
        fsio.publish(
            str(tmp_path / "built"), str(tmp_path / "log"), op="claim segment", withdraws=False
        )
    assert (tmp_path / "log").exists()


def test_restore_into_a_directory_that_is_forbidden_says_only_that(
    node: _Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said "Cannot remove unfinished restore" as well, of a file that was never made."""
    initialize(node.url, str(node.directory))
    create = fsio.create

    def refused(path: str, *, op: str, like: str | None = None) -> int:
        if ".restoring-" in path:
            with storage_errors(op, path):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return create(path, op=op, like=like)

    def unreachable(path: str) -> None:
        raise PermissionError(errno.EACCES, f"{path}: {os.strerror(errno.EACCES)}")

    monkeypatch.setattr(fsio, "create", refused)
    with open_reader(node.url) as backend:
        monkeypatch.setattr(os, "unlink", unreachable)
        with pytest.raises(StorageError, match=r"create replica.*Check the owner"):
            restore(backend, str(node.place / "restored.sqlite3"))


_TABLE = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /tmp rw - tmpfs tmpfs rw
24 22 0:40 / /mnt/my\\040share rw,nosuid - nfs4 host:/export rw
25 22 0:41 / /mnt/ssh rw - fuse.sshfs host: rw
26 22 0:42 / /mnt/win rw master:5 - cifs //host/share rw
27 22 254:0 /x /mnt/ro ro,relatime - ext4 /dev/vda rw
28 22 254:0 /y /mnt/over rw - ext4 /dev/vda rw
29 28 0:43 / /mnt/over rw - overlay overlay rw
30 22 8:1 / /mnt/usb rw - fuseblk /dev/sda1 rw
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/node", Mount("/", "ext4", False, "/dev/vda")),
        ("/tmp/a/b", Mount("/tmp", "tmpfs", False, "tmpfs")),  # noqa: S108 - never opened
        ("/mnt/rope", Mount("/", "ext4", False, "/dev/vda")),
        ("/mnt/my share/node", Mount("/mnt/my share", "nfs4", False, "host:/export")),
        ("/mnt/ro", Mount("/mnt/ro", "ext4", True, "/dev/vda")),
        ("/mnt/over/x", Mount("/mnt/over", "overlay", False, "overlay")),
    ],
)
def test_mount_of_a_path(path: str, expected: Mount) -> None:
    assert mounts.longest(_TABLE.splitlines(), path) == expected


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/home/node", []),
        ("/mnt/over/x", []),
        ("/mnt/usb/x", []),
        ("/tmp/x", ["is memory"]),  # noqa: S108 - never opened
        ("/mnt/my share/x", ["may not see the node's lock"]),
        ("/mnt/win/x", ["may not see the node's lock"]),
        ("/mnt/ssh/x", ["may not see the node's lock", "depends on the program"]),
    ],
)
def test_only_what_a_file_system_lacks_is_told(
    path: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        file_system, "mount_of", lambda path: mounts.longest(_TABLE.splitlines(), path)
    )
    monkeypatch.setattr(file_system, "syncs_names", lambda _directory: True)
    lines = file_system.lacks(path)
    assert len(lines) == len(said)
    assert all(part in line for part, line in zip(said, lines, strict=True))


@pytest.mark.skipif(not os.path.exists("/proc/self/mountinfo"), reason="only Linux has this list")
def test_mount_of_this_system(tmp_path: Path) -> None:
    found = mount_of(str(tmp_path))
    assert found is not None
    assert str(tmp_path.resolve()).startswith(found.point)


def test_read_only_file_system_is_named(tmp_path: Path) -> None:
    read_only = pytest.raises(StorageError, match=r"is read-only .* ReadWritePaths=")
    with read_only, storage_errors("create backup", str(tmp_path)):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_full_disk_is_not_said_to_keep_what_was_never_answered(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as failed, storage_errors("create backup", str(tmp_path)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "Free space" in str(failed.value)
    assert "answered" not in str(failed.value)
