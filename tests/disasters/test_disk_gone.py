"""The disk that holds the node's database drops out and comes back, and the machine runs on."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.plugin.home import CAPTURES, Home, processes_of
from tests.waiting import wait_until, wait_until_ended

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"), "--synchronous", "full")
_EXT4_IOC_SHUTDOWN = 0x8004587D
_WITHOUT_FLUSH = 2


class Disk:
    """An ext4 file system that writes its own journal to the disk only when it is told to."""

    def __init__(self, base: Path) -> None:
        self._image = base / "disk.img"
        self.place = base / "disk"
        self.place.mkdir()
        with self._image.open("wb") as file:
            file.truncate(32 << 20)
        made = subprocess.run(
            ["mkfs.ext4", "-q", "-F", self._image], check=False, capture_output=True
        )
        if made.returncode or not self.mount():
            pytest.skip("needs root and a loop device, to mount a file system")

    def mount(self) -> bool:
        command = ["mount", "-o", "loop,commit=600", str(self._image), str(self.place)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def sync(self) -> None:
        subprocess.run(["sync", "-f", self.place], check=True)

    def drop_out(self) -> None:
        fd = os.open(self.place, os.O_RDONLY)
        fcntl.ioctl(fd, _EXT4_IOC_SHUTDOWN, struct.pack("I", _WITHOUT_FLUSH))
        os.close(fd)

    def unmount(self) -> None:
        """Waits for processes of the plugin that are about to end."""
        umount = ["umount", str(self.place)]
        wait_until(
            lambda: subprocess.run(umount, check=False).returncode == 0,
            f"{self.place} cannot be unmounted",
            pause_s=0.05,
        )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("there is no mkfs.ext4")
    disk = Disk(tmp_path)
    yield disk
    disk.unmount()


def _loses_the_next_commit(home: Home, disk: Disk, version: int) -> bool:
    """Whether SQLite's journal is back after a commit whose disk dropped out.

    It is not where another file's sync on that disk came after the commit.
    """
    node = home.start(*_ROUTER, "--until", str(version), "--hold")
    home.wait_for_version(version)
    processes = processes_of(node.pid)
    disk.drop_out()
    node.kill()
    node.communicate()
    wait_until_ended(*processes)
    disk.unmount()
    assert disk.mount()
    return os.path.exists(f"{home.database.resolve()}-journal")


@pytest.mark.parametrize(
    ("kind", "linked"), [("file", False), ("dir", True)], ids=["directory-file", "link-dir"]
)
def test_commit_that_the_disk_took_back_is_not_dropped(
    kind: str, linked: bool, disk: Disk, tmp_path: Path
) -> None:
    """The node acted on it; the boot is the same, but the mount differs."""
    home = Home(tmp_path / "home", kind)
    if linked:  # only the database is on the disk
        home.database.symlink_to(disk.place / "lightningd.sqlite3")
        (disk.place / "lightningd.sqlite3").touch()
    else:
        home.directory = disk.place / "regtest"
        home.directory.mkdir()
        home.database = home.directory / "lightningd.sqlite3"
    home.init()
    for version in range(60, 65):
        home.run(*_ROUTER, "--until", str(version))
        disk.sync()
        if _loses_the_next_commit(home, disk, version + 1):
            break
    else:
        pytest.fail("the disk kept every commit")
    report = home.run(*_ROUTER, code=None)
    assert report["committed"] == 0
    assert report["data_version"] == version  # SQLite took the commit back
    assert "lost its last changes with the power or the disk" in home.stderr
    assert "was remounted since" in home.stderr
    assert home.dropped() == []
    # the next start waits until the database has been rolled forward
    home.run(*_ROUTER, "--until", "70")
    home.require_same(home.database)
