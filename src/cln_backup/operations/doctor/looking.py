"""One look of the examination: its findings, or that it failed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cln_backup.model.errors import BackupError, Interrupted
from cln_backup.model.health import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def looked(at: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of one look; one that says so if the look fails."""
    try:
        return list(look())
    except Interrupted:
        raise
    except (BackupError, OSError) as error:
        text = str(error)
        if isinstance(error, OSError):
            where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
            text = f"{where}{error.strerror or error}"
        return [cannot_look(at, text)]


def cannot_look(at: str, why: str) -> Finding:
    """The finding that a look has failed."""
    return Finding(
        "cannot-look",
        Level.BAD,
        f"Cannot look at {at}: {why.rstrip('.')}.",
        "Run the doctor as the node's user or as root. If that does not help, the disk or its "
        "mount may be at fault (dmesg).",
    )
