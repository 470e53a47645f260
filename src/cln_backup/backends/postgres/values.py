"""Values of parameters and columns, in the formats of PostgreSQL's protocol."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import TypeAlias

    from psycopg.pq.abc import PGresult

    Value: TypeAlias = int | str | bytes | float | None


def packed(value: Value) -> tuple[bytes | None, int, int]:
    """The bytes of a value, its type and its format."""
    if value is None:
        return None, 25, 0
    if isinstance(value, bytes):
        return value, 17, 1
    if isinstance(value, int):
        return str(value).encode(), 20, 0
    return str(value).encode(), 25, 0


_FLOAT: Final = struct.Struct("!d")


def _unpacked(value: bytes | None, kind: int) -> Value:
    if value is None or kind == 17:
        return value
    if kind in (20, 21, 23):
        return int.from_bytes(value, "big", signed=True)
    if kind == 16:
        return int(value != b"\x00")
    if kind == 701:
        unpacked: float = _FLOAT.unpack(value)[0]
        return unpacked
    return value.decode("utf-8", "surrogateescape")


def rows_of(result: PGresult) -> list[list[Value]]:
    """The rows of a result that has binary columns."""
    kinds = [result.ftype(column) for column in range(result.nfields)]
    return [
        [_unpacked(result.get_value(row, column), kind) for column, kind in enumerate(kinds)]
        for row in range(result.ntuples)
    ]
