"""The measures: each works in an empty directory and gives rows of a table."""

from __future__ import annotations

import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from bench import drive

if TYPE_CHECKING:
    from collections.abc import Iterator

_DATABASE_BYTES = 300_000_000
_ROW_BYTES = 100_000


class Row(NamedTuple):
    """One line of the table."""

    name: str
    value: str
    to_reach: str = ""


def quantile_us(times_s: list[float], share: float) -> int:
    """A quantile of some times, in microseconds."""
    return round(sorted(times_s)[int((len(times_s) - 1) * share)] * 1e6)


def ratio(value: float) -> str:
    """A ratio, for the table."""
    return f"{value:.2f}×"


def build_floor(directory: str) -> str:
    """Compiles the floor program; needs a C compiler."""
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "floor.c")
    program = os.path.join(directory, "floor-program")
    subprocess.run(["cc", "-O2", "-o", program, source], check=True)
    return program


def answer_time(directory: str, capture: str) -> Iterator[Row]:
    """How long the node waits for an answer, call by call in turn with the floor."""
    floor_program = build_floor(directory)
    home = os.path.join(directory, "node")
    drive.new_backup(home)
    floor = drive.Program([floor_program, os.path.join(directory, "floor")], directory)
    plugin = drive.Program([drive.PLUGIN], home)
    floor_s, plugin_s = [], []
    for number, call in enumerate(drive.calls(capture)):
        request = drive.request(number, call["data_version"], call["writes"])
        floor_s.append(floor.answer_time_s(request))
        plugin_s.append(plugin.answer_time_s(request))
    floor.close()
    plugin.close()
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        ours, least = quantile_us(plugin_s, share), quantile_us(floor_s, share)
        yield Row(f"db_write {name}: floor", f"{least} µs")
        yield Row(f"db_write {name}: plugin, file:", f"{ours} µs")
        to_reach = "≤ 2×" if name == "p50" else ""
        yield Row(f"db_write {name}: plugin / floor", ratio(ours / least), to_reach)


def first_answer(directory: str, capture: str) -> Iterator[Row]:
    """From the start of the plugin's process to its first answer."""
    call = next(drive.calls(capture))
    request = drive.request(1, call["data_version"], call["writes"])
    times_s = []
    for number in range(15):
        home = os.path.join(directory, str(number))
        drive.new_backup(home)
        plugin = drive.Program([drive.PLUGIN], home)
        plugin.answer_time_s(request)
        times_s.append(time.perf_counter() - plugin.started)
        plugin.close()
    yield Row("first answer after the start, median of 15", f"{_ms(times_s)} ms", "≤ 150 ms")


def _ms(times_s: list[float]) -> int:
    return round(statistics.median(times_s) * 1e3)


def restore_speed(directory: str, capture: str) -> Iterator[Row]:
    """A whole `backup-cli restore` against the plainest replays with Python's sqlite3."""
    url = drive.new_backup(os.path.join(directory, "node"))
    recorded = list(drive.calls(capture))
    plugin = drive.Program([drive.PLUGIN], os.path.join(directory, "node"))
    for number, call in enumerate(recorded):
        plugin.answer_time_s(drive.request(number, call["data_version"], call["writes"]))
    plugin.close()
    ours, each, once = [], [], []
    for _ in range(3):
        target = os.path.join(directory, "restored.sqlite3")
        started = time.perf_counter()
        subprocess.run([drive.CLI, "restore", url, target], check=True, capture_output=True)
        ours.append(time.perf_counter() - started)
        each.append(_plain_replay(os.path.join(directory, "each"), recorded, None))
        once.append(_plain_replay(os.path.join(directory, "once"), recorded, "DEFERRED"))
        for name in ("restored.sqlite3", "each", "once"):
            os.unlink(os.path.join(directory, name))
    count = len(recorded)
    ours_s, each_s, once_s = map(statistics.median, (ours, each, once))
    yield Row("restore: backup-cli, the whole command", f"{count / ours_s:.0f} /s")
    yield Row("plain replay, a transaction a change", f"{count / each_s:.0f} /s")
    yield Row("plain replay, all in one transaction", f"{count / once_s:.0f} /s")
    yield Row("restore / plain replay", ratio(each_s / ours_s), "≥ 2.5×")
    yield Row("restore / plain replay in one transaction", ratio(once_s / ours_s))


def _plain_replay(path: str, recorded: list[dict[str, object]], isolation: str | None) -> float:
    """Replays with Python's sqlite3 as it is; `None`: each change is a transaction of its own."""
    started = time.perf_counter()
    connection = sqlite3.connect(path, isolation_level=isolation)  # type: ignore[arg-type]
    connection.execute("PRAGMA foreign_keys = ON")
    for call in recorded:
        writes = call["writes"]
        assert isinstance(writes, list)
        transaction = isolation is None and not writes[0].startswith("PRAGMA")
        if transaction:
            connection.execute("BEGIN")
        for statement in writes:
            connection.execute(statement)
        if transaction:
            connection.execute("COMMIT")
    connection.commit()
    connection.close()
    return time.perf_counter() - started


def memory(directory: str, _capture: str) -> Iterator[Row]:
    """Peak memory of the commands that pass a whole database through."""
    home = os.path.join(directory, "node")
    large_database(home)
    url = f"file://{directory}/backup"
    target = os.path.join(directory, "restored.sqlite3")
    yield _peak("init", "init", "--lightning-dir", home, url)
    _write_some(home, 200)
    yield _peak("restore", "restore", url, target)
    yield _peak("compact", "compact", url)


def large_database(home: str) -> None:
    """A node's directory with a database of 300 MB, of values that do not compress."""
    os.makedirs(home)
    connection = sqlite3.connect(os.path.join(home, "lightningd.sqlite3"))
    connection.execute("CREATE TABLE vars (name TEXT PRIMARY KEY, val TEXT, intval INTEGER)")
    connection.execute("INSERT INTO vars (name, intval) VALUES ('data_version', 1)")
    connection.execute("CREATE TABLE large (id INTEGER PRIMARY KEY, content BLOB)")
    for _ in range(_DATABASE_BYTES // _ROW_BYTES):
        connection.execute(f"INSERT INTO large (content) VALUES (randomblob({_ROW_BYTES}))")
    connection.commit()
    connection.close()


def _generated(version: int) -> list[str]:
    bump = "UPDATE vars SET intval = intval + 1 WHERE name = 'data_version' AND intval ="
    content = f"{version % 256:02x}" + "5a" * 2000
    return [f"INSERT INTO large (content) VALUES (x'{content}')", f"{bump} {version - 1}"]


def _write_some(home: str, count: int) -> None:
    plugin = drive.Program([drive.PLUGIN], home)
    for version in range(2, 2 + count):
        plugin.answer_time_s(drive.request(version, version, _generated(version)))
    plugin.close()


def _peak(name: str, *arguments: str) -> Row:
    # A process starts with its parent's peak, so the parent has to be a small one.
    script = (
        "import resource, subprocess, sys;"
        "subprocess.run(sys.argv[1:], check=True, capture_output=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script, drive.CLI, *arguments], check=True, capture_output=True
    )
    peak = int(done.stdout) / 1024
    return Row(f"peak memory of {name}, database of 300 MB", f"{peak:.0f} MB", "< 80 MB")


def answers_during_compaction(directory: str, _capture: str) -> Iterator[Row]:
    """Answer times while a database of 300 MB is compacted, against those before."""
    home = os.path.join(directory, "node")
    large_database(home)
    url = f"file://{directory}/backup"
    subprocess.run(
        [drive.CLI, "init", "--lightning-dir", home, url], check=True, capture_output=True
    )
    plugin = drive.Program([drive.PLUGIN], home)
    version = 1
    usual: list[float] = []
    during: list[float] = []
    plugin.answer_time_s(drive.request(2, 2, _generated(2)))  # with the start of the process
    plugin.init(home)
    version += 1
    for _ in range(25_000):
        version += 1
        usual.append(plugin.answer_time_s(drive.request(version, version, _generated(version))))
    plugin.send(b'{"jsonrpc":"2.0","id":"compact","method":"backup-compact","params":[true]}\n\n')
    while True:
        version += 1
        during.append(plugin.answer_time_s(drive.request(version, version, _generated(version))))
        if b'"id":"compact"' in plugin.said:
            assert b'"error"' not in plugin.said, plugin.said
            break
    plugin.close()
    p99_s = quantile_us(usual, 0.99) / 1e6
    for name, times_s in (("before", usual), ("during", during)):
        slow = sum(time_s > 3 * p99_s for time_s in times_s)
        ours = f"db_write {name} compaction"
        yield Row(f"{ours}, p50 of {len(times_s)}", f"{quantile_us(times_s, 0.5)} µs")
        yield Row(f"{ours}, p99", f"{quantile_us(times_s, 0.99)} µs")
        yield Row(f"{ours}, slowest", f"{quantile_us(times_s, 1.0)} µs")
        yield Row(f"{ours}, share over 3× the p99 before", f"{slow / len(times_s):.2%}")
    yield Row("slowest before / p99 before", ratio(max(usual) / p99_s))
    yield Row("slowest during / p99 before", ratio(max(during) / p99_s), "≤ 3×")
    yield Row("slowest during / slowest before", ratio(max(during) / max(usual)))
    shutil.rmtree(home)


ALL = (answer_time, first_answer, restore_speed, memory, answers_during_compaction)
