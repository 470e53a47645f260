"""Weaknesses of a backup's file system, in words for the operator."""

from __future__ import annotations

from typing import Final

from cln_backup.storage import fsio, ownership
from cln_backup.storage.mounts import mount_of

_IN_MEMORY: Final = frozenset(("tmpfs", "ramfs", "hugetlbfs"))
_SHARED: Final = frozenset(
    (
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "lustre", "ncpfs",
        "nfs", "nfs4", "ocfs2", "orangefs", "prl_fs", "smb2", "smb3", "smbfs", "vboxsf",
        "virtiofs", "vmhgfs",
    )
)  # fmt: skip
"""File systems that other machines may have mounted as well."""


def lacks(directory: str | None, node_directory: str | None = None) -> tuple[str, ...]:
    """Weaknesses of a directory's file system, one line each; empty for a server's backup.

    With a node's network directory, also whether that node's user can write there.
    """
    if directory is None:
        return ()
    found = []
    mount = mount_of(directory)
    if mount is not None:
        where = f"{directory} is on {mount.kind} (mounted at {mount.point})"
        if mount.kind in _IN_MEMORY:
            found.append(f"{where}, which is memory: the backup is lost when the machine restarts.")
        if mount.kind in _SHARED or mount.kind == "fuse" or mount.kind.startswith("fuse."):
            found.append(
                f"{where}: other machines may not see the node's lock, and may read outdated "
                "files. Never let two nodes write to one backup, and compact it on the node's "
                "machine only (lightning-cli backup-compact)."
            )
        if mount.kind == "fuse" or mount.kind.startswith("fuse."):
            found.append(
                f"{where}: whether a sync makes changes durable depends on the program that "
                "serves this file system."
            )
    if not syncs_names(directory):
        found.append(
            f"The file system of {directory} cannot sync a directory: after a loss of power, a "
            "recently created file may be missing, and with it the newest changes."
        )
    if node_directory is not None:
        refused = ownership.may_write(directory, node_directory)
        if refused is not None:
            found.append(refused)
    return tuple(found)


def syncs_names(directory: str) -> bool:
    """Whether names in a directory can be made durable. Raises `StorageError`."""
    return fsio.sync_directory(directory, op="sync directory")
