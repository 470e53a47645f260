"""The digest of a database's content, from `docs/format.md` and Python's own SQLite alone."""

from __future__ import annotations

import re
import sqlite3
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def value(stored: object) -> bytes:
    """One value; text is given as `bytearray`, a blob as `bytes`."""
    if stored is None:
        return b"\xc0"
    if isinstance(stored, int):
        return _integer(stored)
    if isinstance(stored, float):
        import struct

        return b"\xcb" + struct.pack(">d", stored)
    if isinstance(stored, bytearray):
        short = bytes([0xA0 + len(stored)]) if len(stored) < 32 else None
        return (short or _length(0xD9, 0xDA, 0xDB, len(stored))) + bytes(stored)
    assert isinstance(stored, bytes)
    return _length(0xC4, 0xC5, 0xC6, len(stored)) + stored


def _integer(number: int) -> bytes:
    if -32 <= number < 128:
        return number.to_bytes(1, "big", signed=number < 0)
    first = 0xD0 if number < 0 else 0xCC
    for power in range(4):
        size = 1 << power
        try:
            return bytes([first + power]) + number.to_bytes(size, "big", signed=number < 0)
        except OverflowError:
            continue
    raise AssertionError(number)


def _length(one: int, two: int, four: int, length: int) -> bytes:
    if length < 1 << 8:
        return bytes([one]) + length.to_bytes(1, "big")
    if length < 1 << 16:
        return bytes([two]) + length.to_bytes(2, "big")
    return bytes([four]) + length.to_bytes(4, "big")


def array(values: Iterable[object]) -> bytes:
    parts = [value(one) for one in values]
    head = (
        bytes([0x90 + len(parts)]) if len(parts) < 16 else b"\xdc" + len(parts).to_bytes(2, "big")
    )
    return head + b"".join(parts)


def _text(text: str | None) -> bytearray | None:
    return None if text is None else bytearray(text.encode())


def _sql(sql: str | None) -> bytearray | None:
    if sql is None:
        return None
    pieces = re.split(r"('(?:[^']|'')*')", sql)
    for number in range(0, len(pieces), 2):
        pieces[number] = re.sub(r'[ \t\n\f\r"`\[\]]', "", pieces[number])
    return _text("".join(pieces))


def rows(connection: sqlite3.Connection, table: str, order: str) -> list[bytes]:
    names = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
    wanted = ", ".join(f'typeof("{name}"), CAST("{name}" AS BLOB), "{name}"' for name in names)
    connection.text_factory = bytes
    try:
        found = []
        for row in connection.execute(f'SELECT {wanted} FROM "{table}" {order}'):
            values = [
                bytearray(row[n + 1]) if row[n] == b"text" else row[n + 2]
                for n in range(0, len(row), 3)
            ]
            found.append(array(values))
        return found
    finally:
        connection.text_factory = str


def content_digest(path: Path) -> str:
    connection = sqlite3.connect(path)
    try:
        schema = sorted(
            (
                row
                for row in connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")
                if not row[2].startswith("sqlite_stat")
            ),
            key=lambda row: (row[0].encode(), row[1].encode()),
        )
        of_schema = sha256(
            b"".join(array([*map(_text, row[:3]), _sql(row[3])]) for row in schema)
        ).digest()
        whole = sha256(b"cln-backup content 1" + of_schema)
        for name in sorted((row[1] for row in schema if row[0] == "table"), key=str.encode):
            whole.update(table_entry(connection, name))
        return whole.hexdigest()
    finally:
        connection.close()


def table_entry(connection: sqlite3.Connection, name: str) -> bytes:
    key = [row for row in connection.execute(f'PRAGMA table_info("{name}")') if row[5]]
    key.sort(key=lambda row: int(row[5]))
    indexed = any(row[3] == "pk" for row in connection.execute(f'PRAGMA index_list("{name}")'))
    without_rowid = any(row[4] for row in connection.execute("PRAGMA table_list") if row[1] == name)
    if without_rowid or (key and not indexed):
        found = rows(connection, name, "ORDER BY " + ", ".join(f'"{row[1]}"' for row in key))
        digest = sha256(b"".join(found)).digest()
    else:
        found = rows(connection, name, "")
        total = sum(int.from_bytes(sha256(row).digest(), "big") for row in found)
        digest = (total % 2**256).to_bytes(32, "big")
    return array([bytearray(name.encode()), len(found), digest])
