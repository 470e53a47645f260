"""Files that were kept for the operator, or left by a process that was killed."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.backends.inventory import space_bytes
from cln_backup.model.health import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


_KEPT: Final = re.compile(
    r"(.*\.)?(dropped-|torn-after-|before-repair|before-undo|before-rollforward-).*"
    r"|unused\.key-.*|backup\.state\.damaged"
    r"|.*\.(unfinished|restoring|compacting)-\d+.*"
    r"|\.(compact|verify|copy|drill|take-snapshot|roll-forward|undo|write-test)-.*"
)
"""The table of files in docs/design.md has their meaning."""

_OLD_S: Final = 30 * 86_400.0
_SHOWN: Final = 3


class Leftovers(NamedTuple):
    """Files that may be deleted at some time.

    Attributes:
        paths: of them, those that are older than a month first.
        old: how many are.
        bytes: what all of them take.
    """

    paths: tuple[str, ...]
    old: int
    bytes: int


def gather(directories: Iterable[str], now: float) -> Leftovers:
    """Looks into the directories of the node and of the backup. Raises `OSError`."""
    found: dict[str, float] = {}
    for directory in directories:
        for name in os.listdir(directory):
            if _KEPT.fullmatch(name):
                path = os.path.join(directory, name)
                with contextlib.suppress(FileNotFoundError):
                    found[path] = os.lstat(path).st_mtime
    paths = tuple(sorted(found, key=lambda path: found[path]))
    old = sum(1 for at in found.values() if now - at > _OLD_S)
    return Leftovers(paths, old, space_bytes(paths))


def judge(left: Leftovers) -> Iterator[Finding]:
    """The findings about leftovers."""
    if not left.paths:
        yield Finding("leftovers", Level.GOOD, "No kept or unfinished files.")
        return
    shown = ", ".join(left.paths[:_SHOWN]) + (" …" if len(left.paths) > _SHOWN else "")
    text = f"{len(left.paths)} kept or unfinished files ({left.bytes / 1e6:,.1f} MB): {shown}"
    if left.old:
        yield Finding(
            "leftovers",
            Level.WARNING,
            text,
            "If the node has run well since, delete those that the table of files in "
            "docs/design.md allows to delete.",
        )
    else:
        yield Finding("leftovers", Level.GOOD, text)
