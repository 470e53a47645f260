"""A table read in pieces, each short enough for a read lock on a running node's database."""

from __future__ import annotations

import time
from collections import Counter
from hashlib import sha256
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Final, NamedTuple

import apsw

from cln_backup.replay.content import Counts
from cln_backup.replay.tables import encode, encode_typed, quoted, typed_columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cln_backup.replay.tables import Table

PIECE_ROWS: Final = 1_000
"""The rows that are read at once, under one read lock."""

PIECE_S: Final = 0.05
"""The time after which a piece ends, whatever its size."""

WHOLE_PIECES: Final = 10
"""A table that can only be read as a whole may have so many times a piece's rows, and its time."""

Place = tuple[object, ...]


class Unsuitable(Exception):
    """The table cannot be read in this way: see `ways_of`."""


class Row(NamedTuple):
    """A row: its place in the order of reading, and the SHA-256 of its content."""

    place: Place
    digest: bytes


class Piece(NamedTuple):
    """Rows of the node's table, in order.

    Attributes:
        rows: their places and digests.
        is_last: whether the table ends with them.
    """

    rows: list[Row]
    is_last: bool


class Way:
    """A way to read a table in pieces, and to find the same rows in the replica.

    Attributes:
        table: it is of this table, in both databases.
        is_exact: whether rows that differ are different contents. Otherwise only their order may
            differ, and another way must find out.
        counts: the differences found until now.
    """

    is_exact = True

    def __init__(self, table: Table) -> None:
        self.table = table
        self.counts = Counts()
        self._typed = False

    def read(self, node: apsw.Connection) -> Piece:
        """Reads the next piece of the node's table, in the caller's transaction.

        Raises `Unsuitable`, `apsw.Error`.
        """
        raise NotImplementedError

    def compare(self, piece: Piece, replica: apsw.Connection) -> Counts:
        """Compares a piece with the same part of the replica, which is at the same version.

        Raises `Unsuitable`, `apsw.Error`.
        """
        try:
            return self._compare(piece, replica)
        except UnicodeDecodeError:  # text that the node's table does not have, or has elsewhere
            self._typed = True
        try:
            return self._compare(piece, replica)
        except UnicodeDecodeError:
            raise Unsuitable from None

    def _compare(self, piece: Piece, replica: apsw.Connection) -> Counts:
        raise NotImplementedError

    def advance(self, piece: Piece) -> None:
        """Makes the next piece the one after this, in both databases."""
        raise NotImplementedError

    def _rows(
        self,
        connection: apsw.Connection,
        place: Sequence[str],
        rest: str,
        values: Sequence[object] = (),
    ) -> Iterator[Row]:
        columns = self.table.columns
        chosen = typed_columns(columns) if self._typed else ", ".join(map(quoted, columns))
        encoded = encode_typed if self._typed else encode
        width = len(place)
        places = "".join(f"{name}, " for name in place)
        query = f"SELECT {places}{chosen} FROM main.{quoted(self.table.name)} {rest}"
        for row in connection.execute(query, tuple(values)):
            yield Row(row[:width], sha256(encoded(row[width:])).digest())

    def _bounded(
        self,
        connection: apsw.Connection,
        place: Sequence[str],
        rest: str,
        values: Sequence[object],
        pieces: int = 1,
    ) -> Piece:
        """Reads rows until there are enough of them, or the time of a piece is over."""
        try:
            return self._bounded_once(connection, place, rest, values, pieces)
        except UnicodeDecodeError:
            if self._typed:  # the place itself
                raise Unsuitable from None
        self._typed = True
        try:
            return self._bounded_once(connection, place, rest, values, pieces)
        except UnicodeDecodeError:
            raise Unsuitable from None

    def _bounded_once(
        self,
        connection: apsw.Connection,
        place: Sequence[str],
        rest: str,
        values: Sequence[object],
        pieces: int,
    ) -> Piece:
        until = time.monotonic() + PIECE_S * pieces
        # SQLite itself stops, too, if it finds no row for long.
        connection.set_progress_handler(lambda: time.monotonic() >= until + PIECE_S, 1_000)
        found: list[Row] = []
        try:
            for row in islice(self._rows(connection, place, rest, values), PIECE_ROWS * pieces):
                found.append(row)
                if time.monotonic() >= until:
                    return Piece(found, is_last=False)
        except apsw.InterruptError:
            raise Unsuitable from None
        finally:
            connection.set_progress_handler(None)
        return Piece(found, is_last=len(found) < PIECE_ROWS * pieces)


class ByKey(Way):
    """In the order of a unique key, whose values are the same in both databases."""

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self._place = tuple(map(quoted, table.key))
        self._names = ", ".join(self._place)
        self._after: Place | None = None

    def _from(self) -> tuple[str, Place]:
        if self._after is None:
            return "", ()
        return f"({self._names}) > ({', '.join('?' * len(self._place))})", self._after

    def read(self, node: apsw.Connection) -> Piece:
        """See `Way`."""
        start, values = self._from()
        where = f"WHERE {start} " if start else ""
        piece = self._bounded(node, self._place, f"{where}ORDER BY {self._names}", values)
        if any(None in row.place for row in piece.rows):  # then the key is not unique
            raise Unsuitable
        return piece

    def _compare(self, piece: Piece, replica: apsw.Connection) -> Counts:
        # Memory is bounded by the piece.
        start, values = self._from()
        conditions = [start] if start else []
        if not piece.is_last:
            conditions.append(f"({self._names}) <= ({', '.join('?' * len(self._place))})")
            values = (*values, *piece.rows[-1].place)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        left = {encode(row.place): row.digest for row in piece.rows}
        counts = Counts()
        for row in self._rows(replica, self._place, where, values):
            digest = left.pop(encode(row.place), None)
            if digest is None:
                counts.missing += 1
            else:
                counts.differ += digest != row.digest
        counts.extra = len(left)
        return counts

    def advance(self, piece: Piece) -> None:
        """See `Way`."""
        self._after = piece.rows[-1].place


class ByOrder(Way):
    """In the order of the row ids, which `VACUUM` changes: the same statements make the same order.

    In each database it continues after the last row that was the same.
    """

    is_exact = False

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        assert table.order is not None
        self._place = (table.order,)
        self._after: dict[str, Place] = {}
        self._found: Place = ()

    def _rest(self, side: str) -> tuple[str, Place]:
        order, after = self._place[0], self._after.get(side)
        if after is None:
            return f"ORDER BY {order}", ()
        return f"WHERE {order} > ? ORDER BY {order}", after

    def read(self, node: apsw.Connection) -> Piece:
        """See `Way`."""
        return self._bounded(node, self._place, *self._rest("node"))

    def _compare(self, piece: Piece, replica: apsw.Connection) -> Counts:
        counts = Counts()
        rows = self._rows(replica, self._place, *self._rest("replica"))
        # One row more than the last piece of the node's table has.
        ours = list(islice(rows, len(piece.rows) + piece.is_last))
        for our, their in zip_longest(ours, piece.rows):
            if our is None:
                counts.extra += 1
            elif their is None:
                counts.missing += 1
            else:
                counts.differ += our.digest != their.digest
        self._found = ours[-1].place if ours else ()
        return counts

    def advance(self, piece: Piece) -> None:
        """See `Way`."""
        self._after = {"node": piece.rows[-1].place, "replica": self._found}


class AsWhole(Way):
    """All rows at once, in any order; only for a table that is small enough."""

    def read(self, node: apsw.Connection) -> Piece:
        """See `Way`."""
        piece = self._bounded(node, (), "", (), WHOLE_PIECES)
        if not piece.is_last:
            raise Unsuitable
        return piece

    def _compare(self, piece: Piece, replica: apsw.Connection) -> Counts:
        left = Counter(row.digest for row in piece.rows)
        counts = Counts()
        for row in self._rows(replica, (), ""):
            if left[row.digest]:
                left[row.digest] -= 1
            else:
                counts.missing += 1
        counts.extra = left.total()
        return counts

    def advance(self, piece: Piece) -> None:
        """There is one piece only."""


def ways_of(table: Table) -> Iterator[Way]:
    """The ways to read a table, in the order in which they are tried."""
    if table.is_ordered:
        yield ByKey(table)
        return
    if table.order is not None:
        yield ByOrder(table)
    if table.key:
        yield ByKey(table)
    yield AsWhole(table)
