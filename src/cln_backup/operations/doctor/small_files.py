"""The node's small files in the backup: its configuration, certificates, `emergency.recover`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cln_backup.model.health import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterator


class SmallFiles(NamedTuple):
    """The files beside the backup.

    Attributes:
        wanted: whether the backup is to have them.
        has_some: whether it has a set that is whole.
        trouble: why a newer set cannot be stored at the moment.
        damaged: what is damaged of them.
    """

    wanted: bool
    has_some: bool
    trouble: str | None = None
    damaged: str | None = None


def judge(files: SmallFiles) -> Iterator[Finding]:
    """The findings about the small files."""
    if files.trouble is not None:
        yield Finding(
            "node-files",
            Level.WARNING,
            f"The node's small files cannot be stored in the backup: {files.trouble}",
            "The follower tries again each minute. Each change of the database is stored.",
        )
    elif files.damaged is not None:
        yield Finding(
            "node-files",
            Level.WARNING,
            files.damaged,
            "Start the node again: the follower then stores a new set. Look at the disk or the "
            "store, and run `backup-cli verify`.",
        )
    elif files.wanted and not files.has_some:
        yield Finding(
            "node-files",
            Level.WARNING,
            "The backup has none of the node's small files (config, certificates, "
            "emergency.recover).",
            "The follower stores them: leave it on, and start the node.",
        )
    elif files.wanted:
        yield Finding("node-files", Level.GOOD, "The backup has the node's small files.")
    else:
        yield Finding(
            "node-files",
            Level.GOOD,
            "The node's small files are not kept in this backup: copy config and the certificates "
            "yourself.",
        )
