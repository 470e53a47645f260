"""Make the database a node would have, in one process and without a plugin."""

from __future__ import annotations

import lzma
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from simulator.database import NodeDatabase

if TYPE_CHECKING:
    from collections.abc import Iterable

    from simulator.calls import Call


def place_database(source: str | Path, target: str | Path) -> None:
    """Copy a database to where a node looks for it; `.xz` is unpacked on the way.

    Raises:
        OSError: it cannot be read or written; the target exists.
    """
    file = Path(source)
    with (
        lzma.open(file) if file.suffix == ".xz" else file.open("rb") as packed,
        Path(target).open("xb") as unpacked,
    ):
        shutil.copyfileobj(packed, unpacked)


def build_database(
    calls: Iterable[Call],
    path: str | Path,
    *,
    before: str | Path | None = None,
    until: int | None = None,
) -> int:
    """Replay calls into a database and return its data version after that.

    Nothing is synced: this is for comparing, not for keeping.

    Args:
        calls: in order, each following on the one before.
        path: the database; it may exist.
        before: a database to begin with when there is none.
        until: leave out what comes after this version; its riders belong to it.

    Raises:
        DatabaseError: a call does not follow, or fails.
        OSError: `before` cannot be copied.
    """
    if before is not None and not os.path.exists(path):
        place_database(before, path)
    database = NodeDatabase(str(path), synchronous="off")
    try:
        for call in calls:
            if until is not None and call.data_version > until:
                break
            database.apply(call)
            if not call.rider:
                database.commit()
        return database.data_version
    finally:
        database.close()
