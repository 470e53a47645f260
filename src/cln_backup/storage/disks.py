"""The disk that a path is on, as far as the kernel tells: two partitions are on one disk."""

from __future__ import annotations

import os

from cln_backup.storage.mounts import mount_of


def same_disk(path: str, other: str) -> bool:
    """Whether two paths are lost with one disk. Raises `OSError` if one does not exist."""
    if os.stat(path).st_dev == os.stat(other).st_dev:
        return True
    disk = _disk(path)
    return disk is not None and disk == _disk(other)


def write_cache(path: str) -> str | None:
    """The cache of the disk itself, as the kernel names it: `write back` or `write through`.

    `None` if it is unknown.
    """
    disk = _disk(path)
    try:
        with open(f"{disk}/queue/write_cache", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None


def _disk(path: str) -> str | None:
    """The kernel's directory of the whole disk; `None` if it is not a single one."""
    try:
        device = os.stat(path).st_dev
        if not os.major(device):  # as btrfs gives each subvolume a number of its own
            mount = mount_of(path)
            if mount is None or not mount.source.startswith("/dev/"):
                return None
            device = os.stat(mount.source).st_rdev
    except OSError:
        return None
    found = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if os.path.exists(f"{found}/partition"):
        found = os.path.dirname(found)
    return found if os.path.isdir(f"{found}/queue") else None
