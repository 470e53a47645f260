"""The recordings of real nodes, as changes."""

from __future__ import annotations

import json
import lzma
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from cln_backup.model.change import Change

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMITTED = Path(__file__).parent / "data" / "captures"
SMALL = ("payee", "payer", "router")
CRASH = COMMITTED / "crash" / "kill9-three-times"


def large() -> Path | None:
    """The directory of the larger recordings, where the environment names one."""
    named = os.environ.get("CLN_BACKUP_CAPTURES")
    return Path(named) if named and Path(named).is_dir() else None


def lines(path: Path) -> Iterator[Change | str]:
    """The calls of a recording, and the names of what happened between them."""
    with lzma.open(path) as file:
        for line in file:
            entry = json.loads(line.decode("utf-8", "surrogateescape"))
            if "event" in entry:
                yield str(entry["event"])
            else:
                yield Change(entry["data_version"], None, entry["writes"])


def changes(path: Path) -> Iterator[Change]:
    """The calls of a recording in which nothing happened to the node."""
    for line in lines(path):
        assert isinstance(line, Change)
        yield line


def unpacked(path: Path, target: Path) -> Path:
    """A recorded database, unpacked to `target`."""
    with lzma.open(path) as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file)
    return target
