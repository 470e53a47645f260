"""Measures of `postgresql:`: the wait for an answer against a bare INSERT of the same bytes."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import time
from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING

from bench import drive
from bench.measures import Row, ratio
from cln_backup.backends import create_backend, open_writer
from cln_backup.model.change import Change
from tests import postgres_cluster
from tests.postgres.appending import confirm_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

_CALLS = 2_000
_WARM_UP = 200
_TABLE = """
CREATE TABLE IF NOT EXISTS plain (
    backup bigint, part bigint, at bigint, data bytea NOT NULL, PRIMARY KEY (backup, part, at))
"""
_INSERT = "INSERT INTO plain (backup, part, at, data) VALUES (%s, %s, %s, %s)"
_NEWEST = """
SELECT data FROM cln_backup.records JOIN cln_backup.heads USING (backup)
WHERE node = %s ORDER BY part DESC, at DESC LIMIT 1
"""


def postgres_answer(directory: str, capture: str) -> Iterator[Row]:
    """A change through the writer and through the plugin, and its bytes alone, in turn."""
    with postgres_cluster.private(on_disk=True) as primary:
        yield from _measured(primary, "alone", directory, capture)
        standby = postgres_cluster.Server(postgres_cluster.new_directory(on_disk=True))
        try:
            standby.copy_from(primary, "s1")
            standby.start()
            confirm_by(primary, "s1")
            yield from _measured(primary, "standby", directory, capture)
        finally:
            standby.kill()
            shutil.rmtree(standby.directory, ignore_errors=True)


def _measured(
    server: postgres_cluster.Server, name: str, directory: str, capture: str
) -> Iterator[Row]:
    import psycopg

    server.sql(_TABLE)
    home = os.path.join(directory, name)
    os.mkdir(home)
    url = server.url(name)
    create_backend(url, None)
    drive.new_backup(home, url=server.url(f"{name}.plugin"))
    plugin = drive.Program([drive.PLUGIN], home)
    sizes = []
    times_s: dict[str, list[float]] = defaultdict(list)
    with contextlib.ExitStack() as stack:

        def connection(*, autocommit: bool) -> psycopg.Connection:
            made = psycopg.connect(server.conninfo(), autocommit=autocommit)
            return stack.enter_context(made)

        inserting, beginning = connection(autocommit=True), connection(autocommit=False)
        look = connection(autocommit=True)
        writer = stack.enter_context(open_writer(url))
        data = b""

        def insert(number: int) -> None:
            inserting.execute(_INSERT, (len(home), 1, number, data))

        def insert_and_commit(number: int) -> None:
            beginning.execute(_INSERT, (len(home), 2, number, data))
            beginning.commit()

        for number, call in enumerate(itertools.islice(drive.calls(capture), _CALLS)):
            change = Change(call["data_version"], None, call["writes"])
            request = drive.request(number, call["data_version"], call["writes"])

            def write(_: int, change: Change = change) -> None:
                writer.store_change(change)

            def ask(_: int, request: bytes = request) -> None:
                plugin.answer_time_s(request)

            ways: list[Callable[[int], None]] = [insert, write, insert_and_commit, ask]
            for turn in range(len(ways)):
                act = ways[(number + turn) % len(ways)]
                started = time.perf_counter()
                act(number)
                times_s[act.__name__].append(time.perf_counter() - started)
                writer.settle()  # a node does not wait for it
            row = look.execute(_NEWEST, (name,)).fetchone()
            assert row is not None
            data = bytes(row[0])  # inserted in the next turn
            sizes.append(len(data))
    plugin.close()
    p50 = {way: median(times[_WARM_UP:]) for way, times in times_s.items()}
    yield Row(f"postgresql, {name}: record, median", f"{median(sizes):.0f} bytes")
    for way, label in (
        ("insert", "INSERT alone, p50"),
        ("insert_and_commit", "BEGIN, INSERT, COMMIT, p50"),
        ("write", "writer, p50"),
        ("ask", "db_write p50, plugin"),
    ):
        yield Row(f"postgresql, {name}: {label}", f"{p50[way] * 1e6:.0f} µs")
    for way, label in (("write", "writer"), ("ask", "plugin")):
        for bare in ("insert", "insert_and_commit"):
            value = ratio(p50[way] / p50[bare])
            yield Row(f"postgresql, {name}: {label} / {bare.replace('_', ' ')}", value, "≤ 1.3×")


ALL = (postgres_answer,)
