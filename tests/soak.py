"""How much of a long search runs: a part of it, or all with `CLN_BACKUP_SOAK`."""

from __future__ import annotations

import os

SOAK = "CLN_BACKUP_SOAK" in os.environ
"""Whether everything is to run, what takes minutes and 15 GB of disk as well."""


def parts(number: int) -> range:
    """The parts to run of a search that is divided into so many."""
    return range(0, number, 1 if SOAK else 2)
