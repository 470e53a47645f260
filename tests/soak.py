"""How much of a long search runs: a part of it, or all with `CLN_BACKUP_SOAK`."""

from __future__ import annotations

import os

SOAK = "CLN_BACKUP_SOAK" in os.environ
"""Whether everything is to run, what takes minutes and 15 GB of disk as well."""


def parts(number: int) -> range:
    """The parts to run of a search that is divided into so many."""
    return range(0, number, 1 if SOAK else 2)


def kinds_of(*some: str) -> list[str]:
    """The kinds of backup for which a long test runs: these, or each with `CLN_BACKUP_SOAK`.

    Where the same code runs for all kinds, the format's own tests hold what differs.
    """
    return ["file", "dir", "dir-encrypted"] if SOAK else list(some)
