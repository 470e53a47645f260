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
        kept_at: when the newest set was taken, in seconds since 1970; `None` if there is none.
        trouble: why a newer set cannot be stored at the moment.
    """

    wanted: bool
    kept_at: float | None
    trouble: str | None = None


def judge(files: SmallFiles) -> Iterator[Finding]:
    """The findings about the small files."""
    if files.trouble is not None:
        yield Finding(
            "node-files",
            Level.WARNING,
            f"The node's small files cannot be stored in the backup: {files.trouble}",
            "The follower tries again each minute. Each change of the database is stored.",
        )
    elif files.wanted and files.kept_at is None:
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
