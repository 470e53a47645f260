"""Measures of a start: a gap healed by a snapshot, and the comparison before the first answer."""

from __future__ import annotations

import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from bench import drive
from bench.measures import Row
from cln_backup.backends import open_reader
from cln_backup.node.settings import read_state, write_state
from cln_backup.replay.kept import KeptReplica

if TYPE_CHECKING:
    from collections.abc import Iterator

_CALLS = 200
_STARTS = 7
_ROWS_A_MB = 2_600


def _node(home: str, capture: str, megabytes: int, url: str) -> None:
    """A recorded node, grown to a size, with its backup and its kept replica."""
    simulator = [sys.executable, "-m", "simulator", home, "--capture", capture]
    simulator += ["--synchronous", "off", "--quiet"]
    subprocess.run([*simulator, "--calls", str(_CALLS)], cwd=drive.ROOT, check=True)
    path = os.path.join(home, "lightningd.sqlite3")
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("CREATE TABLE bulk (id INTEGER PRIMARY KEY, data BLOB)")
    connection.execute(
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        "INSERT INTO bulk SELECT i, randomblob(200) || zeroblob(180) FROM n",
        (megabytes * _ROWS_A_MB,),
    )
    connection.close()
    drive.new_backup(home, url=url)
    replica = KeptReplica.open(os.path.join(home, "backup.replica"))
    with open_reader(url.format(home)) as reader:
        replica.catch_up(reader)
    replica.close()
    state = read_state(home)._replace(replica_dir=os.path.join(home, "backup.replica"))
    write_state(home, state)


def _version(home: str) -> int:
    connection = sqlite3.connect(os.path.join(home, "lightningd.sqlite3"))
    [(version,)] = connection.execute("SELECT intval FROM vars WHERE name = 'data_version'")
    connection.close()
    return int(version)


def _commit_unseen(home: str) -> None:
    connection = sqlite3.connect(os.path.join(home, "lightningd.sqlite3"))
    with connection:
        connection.execute("UPDATE vars SET intval = intval + 1 WHERE name = 'data_version'")
    connection.close()


def _start_s(home: str, version: int) -> float:
    """From the start of the plugin's process to its first answer."""
    statement = (
        f"UPDATE vars SET intval = intval + 1 WHERE name = 'data_version' AND intval = {version}"
    )
    plugin = drive.Program([drive.PLUGIN], home)
    plugin.answer_time_s(drive.request(1, version + 1, ["DELETE FROM peers WHERE 0", statement]))
    took_s = time.perf_counter() - plugin.started
    plugin.close()
    return took_s


def healed_gap(directory: str, capture: str) -> Iterator[Row]:
    """A gap of one change at 300 MB, from the start of the plugin to its first answer."""
    for url in ("dir://{}/backup", "file://{}/backup"):
        home = os.path.join(directory, url.partition(":")[0])
        os.makedirs(home)
        _node(home, capture, 300, url)
        times_s = []
        for _ in range(3):
            _commit_unseen(home)
            times_s.append(_start_s(home, _version(home)))
            _commit_unseen(home)  # what was answered, as the node would
        kind = url.partition(":")[0]
        yield Row(f"gap healed at 300 MB, {kind}:", f"{max(times_s):.1f} s", "≤ 5 s")
        shutil.rmtree(home)


def start_with_comparison(directory: str, capture: str) -> Iterator[Row]:
    """From the start to the first answer, with and without a kept replica, in turn."""
    for megabytes, to_reach in ((1, "≤ 100 ms"), (300, "≤ 2000 ms")):
        home = os.path.join(directory, str(megabytes))
        os.makedirs(home)
        _node(home, capture, megabytes, "dir://{}/backup")
        state = read_state(home)
        with_s: list[float] = []
        without_s: list[float] = []
        for number in range(_STARTS * 2):
            compares = number % 2 == 0
            kept = state.replica_dir if compares else None
            write_state(home, read_state(home)._replace(replica_dir=kept))
            took_s = _start_s(home, _version(home))
            _commit_unseen(home)
            (with_s if compares else without_s).append(took_s)
        more = statistics.median(with_s) - statistics.median(without_s)
        name = f"first answer, {megabytes} MB: "
        yield Row(name + "without comparison", f"{statistics.median(without_s) * 1e3:.0f} ms")
        yield Row(name + "more with comparison", f"{more * 1e3:.0f} ms", to_reach)
        shutil.rmtree(home)


ALL = (healed_gap, start_with_comparison)
