"""Other processes, as a node is one, that hold something for as long as a block runs."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LISTEN = """
import os, socket, sys
os.chdir(os.path.dirname(sys.argv[1]))
listening = socket.socket(socket.AF_UNIX)
listening.bind(os.path.basename(sys.argv[1]))
listening.listen()
print("ready", flush=True)
sys.stdin.read()
"""
_LOCK = """
import fcntl, os, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print(os.getpid(), file=file, flush=True)
print("ready", flush=True)
sys.stdin.read()
"""
_HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def _neighbour(code: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.stdin.close()


def listening(path: Path) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """A process that listens on a socket; the socket's file stays."""
    return _neighbour(_LISTEN, path)


def locking(path: Path) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """A process that holds a lock on a pid file, as lightningd takes it; the file stays."""
    return _neighbour(_LOCK, path)


def holding(path: Path) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """A process that has a database open."""
    return _neighbour(_HOLD, path)
