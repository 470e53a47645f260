"""The place of the backup: its disk and its file system."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.model.health import Finding, Level
from cln_backup.storage import disks
from cln_backup.storage.file_system import Weakness, is_shared, weaknesses
from cln_backup.storage.mounts import Mount, mount_of

if TYPE_CHECKING:
    from collections.abc import Iterator


_REMEDIES: Final = {
    "in-memory": "Move the backup to a disk: stop the node, and copy it with `backup-cli copy`.",
    "shared-file-system": "Better use a server (socket:) or an object store: they keep two nodes "
    "from writing to one backup.",
    "fuse": "Use a file system of the kernel, or find out what this one does at a sync.",
    "no-directory-sync": "Use a local file system such as ext4 or XFS.",
}


class Place(NamedTuple):
    """The storage of a backup on this machine.

    Attributes:
        directory: where it is.
        mount: its file system; `None` if unknown.
        weaknesses: what that does not guarantee.
        same_disk: whether the node's database is on this disk too; `None` without a node.
        replica: the directory of the follower's replica, if that is not encrypted, the backup is,
            and both are on a disk that is not the node's.
        write_cache: of the disk itself, as the kernel names it.
        reads_past_cache: whether files can be read past the system's cache; `None` if unknown.
    """

    directory: str
    mount: Mount | None
    weaknesses: tuple[Weakness, ...]
    same_disk: bool | None
    replica: str | None = None
    write_cache: str | None = None
    reads_past_cache: bool | None = None


def gather(
    directory: str, database: str | None, replica_dir: str | None, *, encrypted: bool
) -> Place:
    """Looks at the storage; `database` may also be the directory that it will be in.

    Raises:
        OSError, StorageError: it cannot be looked at.
    """
    os.listdir(directory)  # whether this user may
    same_disk = None if database is None else disks.same_disk(directory, database)
    exposed = (
        encrypted
        and replica_dir is not None
        and os.path.isdir(replica_dir)
        and same_disk is False
        and disks.same_disk(replica_dir, directory)
    )
    return Place(
        directory,
        mount_of(directory),
        tuple(weaknesses(directory)),
        same_disk,
        replica_dir if exposed else None,
        disks.write_cache(directory),
        _reads_past_cache(directory),
    )


def _reads_past_cache(directory: str) -> bool | None:
    flag = getattr(os, "O_DIRECT", None)
    names = (os.path.join(directory, name) for name in os.listdir(directory))
    path = next(filter(os.path.isfile, names), None)
    if flag is None or path is None:
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flag)
    except PermissionError:
        return None
    except OSError:
        return False
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as block:
            os.preadv(fd, [block], 0)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def judge(place: Place) -> Iterator[Finding]:
    """The findings about a place on this machine."""
    if place.same_disk:
        yield Finding(
            "same-disk",
            Level.BAD,
            f"The backup ({place.directory}) is on the same disk as the node's database: it is "
            "lost with it.",
            "Move it to another disk, or better to another machine: `backup-cli copy`, then name "
            "the new place in backup.lock.",
        )
    elif place.same_disk is False:
        yield Finding(
            "same-disk", Level.GOOD, "The backup is on another disk than the node's database."
        )
    for weakness in place.weaknesses:
        level = Level.BAD if weakness.code == "in-memory" else Level.WARNING
        yield Finding(weakness.code, level, weakness.text, _REMEDIES[weakness.code])
    mount = place.mount
    if mount is not None:
        yield from _of_mount(place, mount)
    if place.replica is not None:
        yield Finding(
            "replica-beside-backup",
            Level.WARNING,
            f"The follower's replica ({place.replica}), which is not encrypted, is on the disk of "
            "the encrypted backup.",
            "Name a directory on the node's disk with lightningd's option backup-replica-dir.",
        )


def _of_mount(place: Place, mount: Mount) -> Iterator[Finding]:
    if mount.kind == "overlay":
        yield Finding(
            "in-container",
            Level.WARNING,
            f"{place.directory} is on the writable layer of a container (overlay): it is removed "
            "with the container.",
            "Mount a volume for the backup.",
        )
    if mount.read_only:
        yield Finding(
            "read-only",
            Level.BAD,
            f"The file system of {place.directory} ({mount.point}) is mounted read-only: the node "
            "halts at its next change.",
            "Find out why (dmesg): a kernel remounts it so after an error of the disk. Save the "
            "backup elsewhere first, then check the disk.",
        )
    if not mount.flushes:
        yield Finding(
            "no-barrier",
            Level.WARNING,
            f"The file system of {place.directory} ({mount.point}) is mounted with nobarrier: a "
            "sync does not empty the cache of the disk, so a loss of power may destroy changes.",
            "Mount it without that option, unless the cache has a battery.",
        )
    if is_shared(mount.kind) and place.reads_past_cache is False:
        yield Finding(
            "no-direct-read",
            Level.WARNING,
            f"Files on {mount.kind} at {mount.point} cannot be read past the cache of this "
            "machine, so the plugin may notice another machine's writes late.",
            "Never let two machines write to this backup; a server (socket:) prevents it.",
        )
    if not place.weaknesses and mount.flushes and not mount.read_only:
        cache = "" if place.write_cache != "write back" else "; each sync empties the disk's cache"
        yield Finding(
            "no-directory-sync", Level.GOOD, f"The backup is on {mount.kind}, which syncs{cache}."
        )
