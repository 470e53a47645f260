"""The plugin's processor time for a change, until its answer and after: seen from inside.

It depends on the load of the machine far less than a wait. `python -m bench.inside` is the process
in which a plugin runs and is measured.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import subprocess
import sys
import time
from statistics import median
from typing import TYPE_CHECKING

from bench import drive
from bench.cold import WALK_BYTES
from bench.directory import new_home
from bench.measures import Row
from cln_backup.plugin import jsonrpc
from cln_backup.plugin.worker import Plugin

if TYPE_CHECKING:
    from collections.abc import Iterator

_CALLS = 300
_WARM_UP = 50


def cold_inside(directory: str, capture: str) -> Iterator[Row]:
    """One process for each kind, with and without a walk through memory before each call."""
    for number, kind in enumerate(("file:", "dir:", "dir:, encrypted")):
        for caches in ("cold", "warm"):
            home = os.path.join(directory, f"{number}-{caches}")
            new_home(home, kind)
            command = [sys.executable, "-m", "bench.inside", home, capture, caches]
            done = subprocess.run(command, cwd=drive.ROOT, check=True, capture_output=True)
            until_us, after_us = json.loads(done.stderr)
            yield Row(f"{caches}, processor time to the answer: {kind}", f"{until_us} µs")
            yield Row(f"{caches}, processor time after it: {kind}", f"{after_us} µs")


def _measure(home: str, capture: str, *, cold: bool) -> tuple[int, int]:
    """Runs a plugin between two pipes, which take the places of 0 and 1, and feeds it."""
    os.chdir(home)
    theirs, requests = os.pipe()
    answers, ours = os.pipe()
    fcntl.fcntl(requests, fcntl.F_SETPIPE_SZ, jsonrpc.MAILBOX_BYTES)  # nobody reads meanwhile
    os.dup2(theirs, 0)
    os.dup2(ours, 1)
    plugin = Plugin()
    written_ns = 0
    write = jsonrpc.write

    def noting_write(data: bytes) -> None:
        nonlocal written_ns
        write(data)
        written_ns = time.thread_time_ns()

    jsonrpc.write = noting_write
    memory = bytearray(WALK_BYTES)
    until_ns, after_ns = [], []
    for number, call in enumerate(itertools.islice(drive.calls(capture), _CALLS)):
        request = drive.request(number, call["data_version"], call["writes"])
        os.write(requests, request)
        if cold:
            memory.count(1)
        began_ns = time.thread_time_ns()
        plugin._read()  # noqa: SLF001
        after_ns.append(time.thread_time_ns() - written_ns)
        until_ns.append(written_ns - began_ns)
        os.read(answers, 1 << 16)
    return (
        round(median(until_ns[_WARM_UP:]) / 1e3),
        round(median(after_ns[_WARM_UP:]) / 1e3),
    )


ALL = (cold_inside,)

if __name__ == "__main__":
    found = _measure(sys.argv[1], sys.argv[2], cold=sys.argv[3] == "cold")
    sys.stderr.write(json.dumps(found))
    sys.stderr.flush()
    os._exit(0)  # without the plugin's way to leave, which waits for its node
