"""Is killed in the middle of a write test: `python -m tests.doctor.killed URL`."""

from __future__ import annotations

import os
import signal
import sys

from cln_backup.backends import place_at
from tests.histories import append, started_node


def main() -> None:
    """Makes a scratch backup, writes to it, and is killed."""
    with place_at(sys.argv[1]).scratch_backup() as scratch:
        append(scratch.url, started_node())
        os.kill(os.getpid(), signal.SIGKILL)
