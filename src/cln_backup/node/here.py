"""The nodes on this machine that have a backup."""

from __future__ import annotations

import os
from typing import Final

from cln_backup.node.settings import LOCK_NAME

PLACES: Final = (
    "~/.lightning",
    "/var/lib/lightningd",
    "/var/lib/lightning",
    "/var/lib/clightning",
)
"""lightningd's directory as `lightning-cli` assumes it, and as units of distributions have it."""


def nodes_here() -> list[str]:
    """The network directories with a `backup.lock` that this user can see, each once."""
    found: dict[str, str] = {}
    for place in PLACES:
        base = os.path.expanduser(place)
        try:
            names = sorted(os.listdir(base))
        except OSError:  # there is none, or this user may not look
            continue
        for name in names:
            directory = os.path.join(base, name)
            if os.path.exists(os.path.join(directory, LOCK_NAME)):
                found.setdefault(os.path.realpath(directory), directory)
    return list(found.values())
