"""The modules that the plugin loads before its first answer, for which lightningd waits."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.plugin.home import KINDS, Home

if TYPE_CHECKING:
    from pathlib import Path

_START = """
import os
import sys
import cln_backup.plugin.worker
from cln_backup.plugin.replicator import Replicator
change = 1, ["UPDATE vars SET intval = intval + 1 WHERE name = 'data_version' AND intval = 0"]
os.chdir(sys.argv[1])
Replicator(".", lambda text: None).db_write(*change)
print("\\n".join(sys.modules))
"""

_NEVER = {
    "file": {"zstandard", "cryptography", "cln_backup.backends.dir"},
    "dir": {"cryptography", "cln_backup.backends.file"},
    "dir-encrypted": {"cln_backup.backends.file"},
}
_LATER = {
    *("apsw", "asyncio", "bz2", "click", "concurrent", "logging", "lzma", "queue", "random"),
    *("rich", "shutil", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading"),
    *("traceback", "urllib", "cln_backup.cli", "cln_backup.compaction", "cln_backup.follower"),
    "cln_backup.monitor",
    *("cln_backup.operations", "cln_backup.replay", "cln_backup.server", "cln_backup.wire"),
    *("cln_backup.backends.dir.create", "cln_backup.backends.dir.reader"),
    *("cln_backup.backends.file.reader", "cln_backup.backends.opening"),
    *("cln_backup.process.parent", "cln_backup.storage.scratch"),
}
if sys.version_info < (3, 11):
    # The standard library's uuid, which msgspec imports, loads them there.
    _LATER -= {"subprocess", "threading"}
_LIMITS = {"file": 76, "dir": 94, "dir-encrypted": 94}
"""How many modules of this project a start may load: each costs about half a millisecond."""


@pytest.mark.parametrize("kind", KINDS)
def test_start_loads_no_more_than_the_first_answer_needs(tmp_path: Path, kind: str) -> None:
    """A node without a database yet; of the others, the node's id is read with SQLite."""
    home = Home(tmp_path, kind)
    home.init()
    command = [sys.executable, "-c", _START, str(home.directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "cln_backup.plugin.start" in loaded
    assert loaded & (_LATER | _NEVER[kind]) == set()
    own = sorted(name for name in loaded if name.startswith("cln_backup"))
    assert len(own) <= _LIMITS[kind], own
