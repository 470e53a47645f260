"""Weaknesses of a backup's file system, in words for the operator."""

from __future__ import annotations

from typing import Final, NamedTuple

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


class Weakness(NamedTuple):
    """Something that a file system does not guarantee.

    Attributes:
        code: its kind, which never changes: a page of docs/alarms.
        text: for the operator.
    """

    code: str
    text: str


def lacks(directory: str | None, node_directory: str | None = None) -> tuple[str, ...]:
    """Weaknesses of a directory's file system, one line each; empty for a server's backup.

    With a node's network directory, also whether that node's user can write there.
    """
    if directory is None:
        return ()
    found = [weakness.text for weakness in weaknesses(directory)]
    if node_directory is not None:
        refused = ownership.may_write(directory, node_directory)
        if refused is not None:
            found.append(refused)
    return tuple(found)


def is_shared(kind: str) -> bool:
    """Whether other machines may have mounted a file system of this type as well."""
    return kind in _SHARED or kind == "fuse" or kind.startswith("fuse.")


def weaknesses(directory: str) -> list[Weakness]:
    """The weaknesses of the file system of a directory. Raises `StorageError`."""
    found = []
    mount = mount_of(directory)
    if mount is not None:
        where = f"{directory} is on {mount.kind} (mounted at {mount.point})"
        if mount.kind in _IN_MEMORY:
            text = f"{where}, which is memory: the backup is lost when the machine restarts."
            found.append(Weakness("in-memory", text))
        if is_shared(mount.kind):
            text = (
                f"{where}: other machines may not see the node's lock, and may read outdated "
                "files. Never let two nodes write to one backup, and compact it on the node's "
                "machine only (lightning-cli backup-compact)."
            )
            found.append(Weakness("shared-file-system", text))
        if mount.kind == "fuse" or mount.kind.startswith("fuse."):
            text = (
                f"{where}: whether a sync makes changes durable depends on the program that "
                "serves this file system."
            )
            found.append(Weakness("fuse", text))
    if not syncs_names(directory):
        text = (
            f"The file system of {directory} cannot sync a directory: after a loss of power, a "
            "recently created file may be missing, and with it the newest changes."
        )
        found.append(Weakness("no-directory-sync", text))
    return found


def syncs_names(directory: str) -> bool:
    """Whether names in a directory can be made durable. Raises `StorageError`."""
    return fsio.sync_directory(directory, op="sync directory")
