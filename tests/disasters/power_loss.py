"""A simulated node whose machine loses power, after which SQLite's journal is back."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from tests.plugin.home import CAPTURES, Home

if TYPE_CHECKING:
    from pathlib import Path

ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"), "--synchronous", "full")
LAST_CALL = 60


def machine_was_restarted(home: Home) -> None:
    """Makes the next start see another boot of the machine than the last answer."""
    state = home.directory / "backup.state"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"boot_id": "another boot"}))


def lose_power(home: Home, missing: int = 1, *more: str) -> None:
    """Leaves the database with the journal of a commit that is `missing` versions old.

    The backup has everything up to the last call, whose commit is lost as well if `missing` is 2.
    """
    home.run(
        *ROUTER, *more, "--crash", f"in-commit@{LAST_CALL - missing + 1}:step=delete", code=None
    )
    journal = _journal(home.database)
    assert journal.stat().st_size > 512
    if missing == 2:
        # The node answered the next change too, and this journal's removal never reached the disk.
        found = home.base / "found"
        found.mkdir()
        for path in (home.database, journal):
            shutil.copy(path, found)
        home.run(*ROUTER, *more, "--crash", f"after-answer@{LAST_CALL}", code=None)
        for path in found.iterdir():
            shutil.copy(path, home.directory)
        shutil.rmtree(found)
    machine_was_restarted(home)


def copies(home: Home) -> list[Path]:
    """The copies of the database as found."""
    return sorted(home.directory.glob("*.before-rollforward-*"))


def _journal(database: Path) -> Path:
    return database.with_name(f"{database.name}-journal")
