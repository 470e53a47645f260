"""Classifies the SQL statements of lightningd by their text, without running them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_DIGITS = 10
_DATA_VERSION_BUMP = re.compile(
    r"\s*UPDATE\s+vars\s+SET\s+intval\s*=\s*intval\s*\+\s*1\s+"
    r"WHERE\s+name\s*=\s*'data_version'\s+AND\s+intval\s*=\s*(\d{1,10})\s*;?\s*",
    re.IGNORECASE,
)
_AS_SENT = "UPDATE vars SET intval = intval + 1 WHERE name = 'data_version' AND intval = "
_PRAGMA = re.compile(r"[ \t\r\n]*PRAGMA\b", re.IGNORECASE)
_FOREIGN_KEYS = re.compile(
    r"\s*PRAGMA\s+(?:main\s*\.\s*)?foreign_keys\s*(?:=\s*|\(\s*)['\"]?(\w+)", re.IGNORECASE
)
_NAME = r"[`\"\[]?(?:main[`\"\]]?\.[`\"\[]?)?(\w+)"
_KIND = re.compile(
    r"\s*(CREATE\s+(?:UNIQUE\s+)?(?:TABLE|INDEX|TRIGGER|VIEW)|ALTER\s+TABLE"
    r"|DROP\s+(?:TABLE|INDEX|TRIGGER|VIEW)|INSERT|REPLACE|UPDATE|DELETE|SELECT|PRAGMA|VACUUM|ATTACH"
    r"|BEGIN|COMMIT)\b",
    re.IGNORECASE,
)
_TABLE = re.compile(
    r"\s*(?:"
    r"(?:INSERT|REPLACE)(?:\s+OR\s+\w+)?\s+INTO\s+"
    r"|UPDATE(?:\s+OR\s+\w+)?\s+"
    r"|DELETE\s+FROM\s+"
    r"|CREATE\s+(?:TEMP(?:ORARY)?\s+)?(?:TABLE|VIEW)\s+(?:IF\s+NOT\s+EXISTS\s+)?"
    r"|CREATE\s+(?:UNIQUE\s+)?INDEX\s+(?:IF\s+NOT\s+EXISTS\s+)?\S+\s+ON\s+"
    r"|CREATE\s+TRIGGER\s+(?:IF\s+NOT\s+EXISTS\s+)?\S+.*?\sON\s+"
    r"|ALTER\s+TABLE\s+"
    r"|DROP\s+(?:TABLE|VIEW)\s+(?:IF\s+EXISTS\s+)?"
    r")" + _NAME,
    re.IGNORECASE | re.DOTALL,
)
_FAULTY_RESERVED_TIL = re.compile(r"reserved_til=([0-9]+)WHERE")
_FAULTY_PEER_ID = re.compile(r"peer_id=([0-9]+)WHERE channels\.id=")
_FAULTY = re.compile(r"[0-9]WHERE")
_LITERAL = re.compile(r"'((?:[^']|'')*)'")
_STRAY = re.compile("[\udc80-\udcff]")


def is_pragma(statement: str) -> bool:
    """Whether the statement is a `PRAGMA`."""
    return _PRAGMA.match(statement) is not None


def is_rider(statements: Sequence[str]) -> bool:
    """Whether a call with these statements is a rider, not a transaction.

    lightningd runs such statements at once, outside a transaction, and reports them with the
    current version of the database (db/db_sqlite3.c, `prepare_table_manip`).
    """
    if not statements or statements[-1].startswith(_AS_SENT):
        return False
    return all(map(is_pragma, statements))


def foreign_keys_after(statements: Sequence[str], before: bool) -> bool:
    """Whether foreign keys are enforced after a rider, given whether they were before."""
    enforced = before
    for statement in statements:
        if match := _FOREIGN_KEYS.match(statement):
            value = match[1].upper()
            enforced = value in {"ON", "YES", "TRUE"} or (value.isdecimal() and int(value) != 0)
    return enforced


def bumps_data_version_to(statement: str) -> int | None:
    """The data version that this statement sets, or `None` if it sets none.

    lightningd ends every transaction with it (db/exec.c, `db_data_version_incr`).
    """
    if statement.startswith(_AS_SENT):  # in the hot path: takes a third of the pattern's time
        number = statement[len(_AS_SENT) :]
        if len(number) <= _DIGITS and number.isascii() and number.isdecimal():
            return int(number) + 1
    match = _DATA_VERSION_BUMP.fullmatch(statement)
    return None if match is None else int(match[1]) + 1


def is_bump_as_sent(statement: str, version: int) -> bool:
    """Whether this is exactly the statement with which lightningd ends a transaction to `version`.

    For the hot path; `False` proves nothing.
    """
    return statement == f"{_AS_SENT}{version - 1}" and 0 < version <= 10**_DIGITS


def kind(statement: str) -> str:
    """The statement's command, such as `INSERT` or `CREATE TABLE`, without its contents."""
    match = _KIND.match(statement)
    return "statement" if match is None else " ".join(match[1].upper().split())


def table(statement: str) -> str | None:
    """The name of the table that the statement touches, if it names one."""
    match = _TABLE.match(statement)
    return None if match is None else match[1]


def tables_touched(statements: Sequence[str]) -> tuple[str, ...]:
    """The tables that these statements name as touched, each once, in order."""
    return tuple(dict.fromkeys(name for name in map(table, statements) if name is not None))


def mend(statement: str) -> str:
    """Inserts the space that old releases left out between a number and `WHERE`.

    Releases before 2020-10 expanded two statements wrongly (lightningd pull request 4090).
    SQLite 3.41 and later reject the text without the space.
    """
    if _FAULTY.search(statement) is None:
        return statement
    statement = _FAULTY_RESERVED_TIL.sub(r"reserved_til=\1 WHERE", statement)
    return _FAULTY_PEER_ID.sub(r"peer_id=\1 WHERE channels.id=", statement)


def with_stray_bytes_as_hex(statement: str) -> str:
    """The same statement as valid text: string literals with invalid UTF-8 become hex.

    A text that a peer sent may contain any bytes. SQLite stores them unchanged; its bindings for
    Python accept valid text only. `CAST(x'…' AS TEXT)` gives the same value.
    """
    return _LITERAL.sub(_literal_as_hex, statement)


def _literal_as_hex(match: re.Match[str]) -> str:
    if _STRAY.search(match[1]) is None:
        return match[0]
    content = match[1].replace("''", "'").encode("utf-8", "surrogateescape")
    return f"CAST(x'{content.hex()}' AS TEXT)"
