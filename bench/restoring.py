"""A restore from a snapshot and a short log, against the copying of the same database."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import time
from typing import TYPE_CHECKING

from bench import drive
from bench.measures import Row, large_database, ratio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.model.change import Change

_ROUNDS = 7
_CHANGES = 200
_ROWS_BYTES = 300_000_000


def restore_from_snapshot(directory: str, _capture: str) -> Iterator[Row]:
    """Databases of 300 MB: large values, and small rows with two indexes (slow to check)."""
    blobs, rows = os.path.join(directory, "blobs"), os.path.join(directory, "rows")
    large_database(blobs)
    _rows_database(rows)
    for name, home in (("large values", blobs), ("small rows", rows)):
        yield from _measured(name, home)
        shutil.rmtree(home)


def _measured(name: str, home: str) -> Iterator[Row]:
    database = os.path.join(home, "lightningd.sqlite3")
    kinds = {kind: _backup(kind, home, database) for kind in ("dir", "dir encrypted", "file")}
    copied: list[float] = []
    restored: dict[str, list[float]] = {kind: [] for kind in kinds}
    target = os.path.join(home, "target")
    for _ in range(_ROUNDS):
        copied.append(_time_s(target, ["sh", "-c", f"cp {database} {target} && sync {target}"]))
        for kind, url in kinds.items():
            restored[kind].append(_time_s(target, [drive.CLI, "restore", url, target]))
    copy_s = statistics.median(copied)
    yield Row(f"300 MB of {name}: cp and fsync", f"{copy_s:.2f} s")
    for kind, times_s in restored.items():
        value = f"{statistics.median(times_s):.2f} s"
        yield Row(f"300 MB of {name}: restore, {kind}", value)
        yield Row(
            f"300 MB of {name}: restore / copy, {kind}",
            ratio(statistics.median(times_s) / copy_s),
            "≤ 1.3×",
        )


def _time_s(target: str, command: list[str]) -> float:
    if os.path.exists(target):
        os.unlink(target)
    os.sync()
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def _backup(kind: str, home: str, database: str) -> str:
    from cln_backup.backends import create_backend, open_writer
    from cln_backup.model.change import Change
    from cln_backup.replay.replica import DatabaseFile

    path = os.path.join(home, kind.replace(" ", "-"))
    url = f"{kind.partition(' ')[0]}://{path}"
    if kind.endswith("encrypted"):
        key = os.open(f"{path}.key", os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(key, os.urandom(32))
        os.close(key)
        url += f"?key-file={path}.key"
    create_backend(url, Change(1, DatabaseFile(database), None))
    with open_writer(url) as writer:
        for version in range(2, 2 + _CHANGES):
            writer.add_change(_change(version))
    return url


def _change(version: int) -> Change:
    from cln_backup.model.change import Change

    bump = "UPDATE vars SET intval = intval + 1 WHERE name = 'data_version' AND intval ="
    text = f"UPDATE vars SET val = 'change {version}' WHERE name = 'data_version'"
    return Change(version, None, [text, f"{bump} {version - 1}"])


def _rows_database(home: str) -> None:
    os.makedirs(home)
    path = os.path.join(home, "lightningd.sqlite3")
    connection = sqlite3.connect(path)
    for statement in (
        "PRAGMA synchronous = OFF",
        "CREATE TABLE vars (name TEXT PRIMARY KEY, val TEXT, intval INTEGER)",
        "INSERT INTO vars (name, intval) VALUES ('data_version', 1)",
        "CREATE TABLE channels (id INTEGER PRIMARY KEY, alias TEXT)",
        (
            "CREATE TABLE channel_htlcs (id INTEGER PRIMARY KEY, channel_id INTEGER REFERENCES"
            " channels(id), payment_hash BLOB UNIQUE, routing_onion BLOB, msatoshi INTEGER)"
        ),
        "CREATE INDEX by_channel ON channel_htlcs (channel_id)",
    ):
        connection.execute(statement)
    connection.executemany("INSERT INTO channels VALUES (?, 'a')", [(n,) for n in range(1, 21)])
    numbers = random.Random(1)  # noqa: S311 - the same database each time
    while os.path.getsize(path) < _ROWS_BYTES:
        connection.executemany(
            "INSERT INTO channel_htlcs (channel_id, payment_hash, routing_onion, msatoshi)"
            " VALUES (?, ?, ?, ?)",
            [
                (
                    numbers.randint(1, 20),
                    numbers.randbytes(32),
                    numbers.randbytes(numbers.randint(0, 500)),
                    numbers.randint(1, 10**9),
                )
                for _ in range(20_000)
            ],
        )
        connection.commit()
    connection.close()


ALL = (restore_from_snapshot,)
