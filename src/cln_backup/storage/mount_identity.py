"""Distinguishes mounts of a file system: a remount may have lost data that was not yet on the disk.

As long as a file system stays mounted, everything written to it is there, whether or not it has
reached the disk. If the disk drops out, the file system must be remounted when it is back, and its
journal or SQLite's may then undo commits.
"""

from __future__ import annotations

import glob
import os
import struct
from typing import Final

from cln_backup.storage import statx
from cln_backup.storage.mounts import mount_of

_WITH_ENTRY: Final = ("ext4", "xfs", "f2fs")
"""Drivers that give each file system that they mount an entry in sysfs, named by its device."""

_WITHOUT_DEVICE: Final = frozenset({"btrfs", "zfs", "bcachefs", "overlay", "tmpfs", "ramfs"})
"""Local types of file systems that have no device number of their own.

Any other type without one may be a server's, which can lose data while the mount stays.
"""

_MOUNT_ID: Final = struct.Struct("=I140xQ")
"""The start of `struct statx`: its mask, the unique mount id."""


def mount_identity(directory: str) -> str | None:
    """A name for the mounted file system of a directory; it changes with a remount.

    `None` if the system does not tell. Comparable within one boot of the machine only.
    """
    try:
        device = os.stat(directory).st_dev
        if os.major(device):
            return _entry_of_device(device) or _unique_mount(directory)
        mount = mount_of(directory)
        if mount is None or mount.kind not in _WITHOUT_DEVICE:
            return None
        entry = _entry_of_btrfs(mount.source) if mount.kind == "btrfs" else None
        return entry or _unique_mount(directory)
    except OSError:  # it was unmounted meanwhile
        return None


def _entry_of_device(device: int) -> str | None:
    """The driver's entry: it exists while the file system is mounted; the next has a new inode.

    A mount in a namespace of its own, as each start of a container makes one, has the same entry.
    """
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        name = os.path.basename(os.readlink(f"/sys/dev/block/{number}"))
    except OSError:
        return None
    for driver in _WITH_ENTRY:
        entry = f"/sys/fs/{driver}/{name}"
        if os.path.isdir(entry):
            return f"{driver} {name} {number} {os.stat(entry).st_ino}"
    return None


def _entry_of_btrfs(source: str) -> str | None:
    """As `_entry_of_device`: btrfs names its entries by the file system's UUID."""
    name = glob.escape(os.path.basename(os.path.realpath(source)))
    for device in glob.iglob(f"/sys/fs/btrfs/*/devices/{name}"):
        entry = os.path.dirname(os.path.dirname(device))
        return f"btrfs {os.path.basename(entry)} {os.stat(entry).st_ino}"
    return None


def _unique_mount(directory: str) -> str | None:
    function = statx.function()
    if function is None:
        return None
    from ctypes import create_string_buffer

    buffer = create_string_buffer(statx.SIZE_BYTES)
    path = os.fsencode(directory)
    if function(statx.AT_FDCWD, path, 0, statx.UNIQUE_MOUNT_ID, buffer) != 0:
        return None
    held, mount_id = _MOUNT_ID.unpack_from(buffer)
    return f"mount {mount_id}" if held & statx.UNIQUE_MOUNT_ID else None
