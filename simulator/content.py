"""Compare what two SQLite databases hold.

Equal means that `sqlite3 FILE .dump` prints the same text for both: the same tables, indexes, views
and triggers with the same SQL, in the same order, and in every table the same rows in rowid order,
`sqlite_sequence` among them. Page size, free pages and journal mode do not count. Two cases are
told apart here that the text does not show: what follows a NUL character in a text, and the order
of rows where SQLite reads a table through an index.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import apsw

if TYPE_CHECKING:
    from collections.abc import Iterator

SHOWN_DIFFERENCES = 10
SHOWN_CHARACTERS = 60


def differences(a: str | Path, b: str | Path, *, limit: int = SHOWN_DIFFERENCES) -> list[str]:
    """Say where two databases differ; an empty list means that they hold the same.

    Neither file is changed, and memory holds one row of each. A database with a journal or a
    write-ahead log beside it is read in a copy, where SQLite recovers it as the next process would.

    Args:
        a: one database.
        b: the other.
        limit: how many differences are enough.

    Raises:
        OSError: a file is missing.
        apsw.Error: a file is not a database, or is damaged.
    """
    with _open(a) as one, _open(b) as other:
        found: list[str] = []
        for line in chain(_schema_differences(one, other), _row_differences(one, other)):
            found.append(line)
            if len(found) == limit:
                break
        return found


@contextmanager
def _open(path: str | Path) -> Iterator[apsw.Connection]:
    """Open a database for reading, together with what a crash left beside it."""
    original = Path(path)
    beside = [Path(f"{path}{suffix}") for suffix in ("-journal", "-wal")]
    left = [file for file in beside if file.exists() and file.stat().st_size]
    if not original.is_file():
        raise FileNotFoundError(f"no such database: {path}")
    with tempfile.TemporaryDirectory() if left else _no_directory() as directory:
        if directory is None:
            connection = apsw.Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READONLY)
        else:
            for file in [original, *left]:
                shutil.copyfile(file, Path(directory, file.name))
            connection = apsw.Connection(os.path.join(directory, original.name))
        try:
            yield connection
        finally:
            connection.close()


@contextmanager
def _no_directory() -> Iterator[None]:
    yield None


def _schema(connection: apsw.Connection) -> list[tuple[str, str, str]]:
    """List what was created, in the order in which `.dump` prints it."""
    rows = connection.execute(
        "SELECT type, name, sql FROM sqlite_schema WHERE sql NOT NULL"
        " ORDER BY type <> 'table', type COLLATE NOCASE DESC, tbl_name = 'sqlite_sequence', rowid"
    )
    return [(str(kind), str(name), str(sql)) for kind, name, sql in rows]


def _schema_differences(one: apsw.Connection, other: apsw.Connection) -> Iterator[str]:
    a, b = _schema(one), _schema(other)
    if a == b:
        return
    missing, added = [row for row in a if row not in b], [row for row in b if row not in a]
    for kind, name, sql in missing:
        yield f"schema: only in the first: {kind} {name}: {_short(sql)}"
    for kind, name, sql in added:
        yield f"schema: only in the second: {kind} {name}: {_short(sql)}"
    if not missing and not added:
        yield "schema: the same objects, created in another order"


def _tables(connection: apsw.Connection) -> list[str]:
    return [
        name
        for kind, name, sql in _schema(connection)
        if kind == "table" and not sql.upper().startswith("CREATE VIRTUAL")
    ]


def _row_differences(one: apsw.Connection, other: apsw.Connection) -> Iterator[str]:
    in_both = set(_tables(other))
    for table in _tables(one):
        if table not in in_both:
            continue
        rows = zip_longest(_rows(one, table), _rows(other, table))
        for number, (a, b) in enumerate(rows, 1):
            if a != b:
                yield f"table {table}, row {number}: {_short(a)} | {_short(b)}"


def _rows(connection: apsw.Connection, table: str) -> Iterator[tuple[object, ...]]:
    """Yield rows in rowid order, each value with its type; text as the bytes it is stored as."""
    columns = [
        _identifier(str(row[1]))
        for row in connection.execute(f"PRAGMA table_info({_identifier(table)})")
    ]
    values = ", ".join(
        f"typeof({name}), CASE typeof({name}) WHEN 'text' THEN CAST({name} AS BLOB) ELSE {name} END"
        for name in columns
    )
    return iter(connection.execute(f"SELECT {values} FROM {_identifier(table)} NOT INDEXED"))


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _short(value: object) -> str:
    if value is None:
        return "no such row"
    if isinstance(value, tuple):
        shown = ", ".join(
            "NULL" if kind == "null" else _short(item)
            for kind, item in zip(value[::2], value[1::2], strict=True)
        )
        return f"({shown})"
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def main(arguments: list[str] | None = None) -> int:
    """Compare two files; return 1 when they differ, 2 when one cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m simulator.content", description=__doc__)
    parser.add_argument("a", metavar="A", help="a SQLite database")
    parser.add_argument("b", metavar="B", help="another one")
    parser.add_argument(
        "--limit", type=int, default=SHOWN_DIFFERENCES, help="differences to show (%(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        found = differences(options.a, options.b, limit=options.limit)
    except (OSError, apsw.Error) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.writelines(f"{line}\n" for line in found or ["equal"])
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
