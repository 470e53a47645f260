"""Tables of a SQLite database, and their rows as bytes that do not depend on its page layout.

A row is one MessagePack array: `docs/format.md` defines it.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    import apsw

_STATISTICS: Final = "sqlite_stat"
_ROWID_NAMES: Final = ("rowid", "_rowid_", "oid")
_LITERAL_OR_LAYOUT: Final = re.compile(r"('(?:[^']|'')*')|[ \t\n\f\r\"`\[\]]+")
_TEXT = "text"

encode: Final = msgspec.msgpack.Encoder().encode


class Table(NamedTuple):
    """A table of a database.

    Attributes:
        name: of the table.
        columns: without generated ones, in order.
        key: the columns of the primary key, or else of a unique constraint; empty if there is none.
        order: an SQL expression that numbers the rows in the order of storage; `None` if there is
            none.
        is_ordered: whether that order belongs to the content: an `INTEGER PRIMARY KEY`, or a table
            `WITHOUT ROWID`. Otherwise it is the order of insertion, which does not.
    """

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    order: str | None
    is_ordered: bool


class SchemaRow(NamedTuple):
    """A table, index, trigger or view, as in `sqlite_schema`; `sql` without its layout."""

    type: str
    name: str
    table: str
    sql: str | None


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def fetched(
    connection: apsw.Connection, query: str, values: Sequence[object] = ()
) -> list[tuple[Any, ...]]:
    """All rows of a query that has few. Raises `apsw.Error`."""
    return connection.execute(query, tuple(values)).fetchall()


def schema_of(connection: apsw.Connection) -> list[SchemaRow]:
    """The schema, in the order of type and name.

    The tables of `ANALYZE` are left out: they do not belong to the content. White space and the
    quotes of identifiers are left out of the SQL: releases of SQLite differ in them when they
    rewrite it.
    """
    rows = fetched(connection, "SELECT type, name, tbl_name, sql FROM sqlite_schema")
    found = [
        SchemaRow(kind, name, table, None if sql is None else _without_layout(sql))
        for kind, name, table, sql in rows
        if not table.startswith(_STATISTICS)
    ]
    return sorted(found, key=lambda row: (row.type.encode(), row.name.encode()))


def _without_layout(sql: str) -> str:
    return _LITERAL_OR_LAYOUT.sub(lambda match: match[1] or "", sql)


def tables_of(connection: apsw.Connection) -> dict[str, Table]:
    """The tables that have rows of their own, by name, in the order of the names' bytes.

    Not those of `ANALYZE`, and not virtual tables: these keep their rows in ordinary ones.
    """
    rows = fetched(
        connection,
        "SELECT name, wr FROM pragma_table_list "
        "WHERE schema = 'main' AND type IN ('table', 'shadow') AND name <> 'sqlite_schema'",
    )
    return {
        name: _table(connection, name, is_keyed=bool(without_rowid))
        for name, without_rowid in sorted(rows, key=lambda row: row[0].encode())
        if not name.startswith(_STATISTICS)
    }


def _table(connection: apsw.Connection, name: str, *, is_keyed: bool) -> Table:
    # `is_keyed`: without rowid.
    rows = fetched(connection, "SELECT name, pk FROM pragma_table_info(?)", (name,))
    columns = tuple(column for column, _ in rows)
    key = tuple(
        column for _, column in sorted((number, column) for column, number in rows if number)
    )
    if is_keyed:
        return Table(name, columns, key, ", ".join(map(quoted, key)), is_ordered=True)
    indexes = fetched(
        connection,
        "SELECT name, origin FROM pragma_index_list(?) WHERE origin IN ('pk', 'u') "
        "ORDER BY origin, seq DESC",
        (name,),
    )
    if key and "pk" not in (origin for _, origin in indexes):  # another name of the rowid
        return Table(name, columns, key, quoted(key[0]), is_ordered=True)
    if indexes and not key:
        query = "SELECT name FROM pragma_index_info(?) ORDER BY seqno"
        key = tuple(column for (column,) in fetched(connection, query, (indexes[0][0],)))
    taken = {column.lower() for column in columns}
    free = [rowid for rowid in _ROWID_NAMES if rowid not in taken]
    return Table(name, columns, key, free[0] if free else None, is_ordered=False)


def rows_of(
    connection: apsw.Connection, table: Table, where: str = "", values: Sequence[object] = ()
) -> Generator[bytes]:
    """The rows in their order of storage, each encoded; memory for one row at a time.

    Raises `apsw.Error`.
    """
    order = f" ORDER BY {table.order}" if table.order else ""
    source = f"FROM main.{quoted(table.name)} {where}{order}"
    number = 0
    try:
        for row in connection.execute(
            f"SELECT {', '.join(map(quoted, table.columns))} {source}", tuple(values)
        ):
            yield encode(row)
            number += 1
    except UnicodeDecodeError:
        rest = f"SELECT {typed_columns(table.columns)} {source} LIMIT -1 OFFSET {number}"
        for typed in connection.execute(rest, tuple(values)):
            yield encode_typed(typed)


def typed_rows(
    connection: apsw.Connection,
    table: str,
    key: str,
    columns: Sequence[str],
    rest: str = "",
    values: Sequence[object] = (),
) -> Iterator[tuple[object, bytes]]:
    """A column's value, and others encoded; `rest` follows the name of the table.

    Raises `apsw.Error`.
    """
    rows = connection.execute(
        f"SELECT {quoted(key)}, {typed_columns(columns)} FROM main.{quoted(table)} {rest}",
        tuple(values),
    )
    for value, *typed in rows:
        yield value, encode_typed(typed)


def typed_columns(columns: Iterable[str]) -> str:
    """For each column its storage class, and its value with text as bytes."""
    return ", ".join(
        f"typeof({name}), CASE typeof({name}) WHEN 'text' THEN CAST({name} AS BLOB) ELSE {name} END"
        for name in map(quoted, columns)
    )


def encode_typed(row: Sequence[object]) -> bytes:
    """A row encoded as by `encode`, from storage classes and values; text may be any bytes."""
    return encode(
        [
            _text(value) if kind == _TEXT and isinstance(value, bytes) else value
            for kind, value in zip(row[::2], row[1::2], strict=True)
        ]
    )


def _text(content: bytes) -> msgspec.Raw:
    # The header depends on the length only.
    header = encode("x" * len(content))
    return msgspec.Raw(header[: len(header) - len(content)] + content)


def hashed_in_key_order(connection: apsw.Connection, table: Table) -> Iterator[tuple[bytes, bytes]]:
    """The key and the SHA-256 of each row, in an order that depends on the content only.

    The key is encoded as a row; without one it is the whole row. SQLite sorts, with
    bounded memory and a temporary file if need be. Raises `apsw.Error`.
    """
    key = table.key or table.columns
    connection.create_scalar_function("cln_backup_key", lambda *row: encode_typed(row), -1)
    connection.create_scalar_function(
        "cln_backup_row", lambda *row: sha256(encode_typed(row)).digest(), -1
    )
    return iter(
        connection.execute(
            f"SELECT cln_backup_key({typed_columns(key)}) AS k, "
            f"cln_backup_row({typed_columns(table.columns)}) AS r "
            f"FROM main.{quoted(table.name)} ORDER BY k, r"
        )
    )
