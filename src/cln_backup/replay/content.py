"""The content of a SQLite database: its digest, and the comparison of two databases.

Content is the schema and the rows, whatever the pages, the journal mode or the order of insertion.
"""

from __future__ import annotations

import time
from contextlib import closing, contextmanager
from hashlib import sha256
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Final, NamedTuple

import apsw

from cln_backup.model.errors import StorageError
from cln_backup.replay.tables import (
    encode,
    hashed_in_key_order,
    rows_of,
    schema_of,
    tables_of,
)
from cln_backup.storage import interruption

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from cln_backup.replay.tables import SchemaRow, Table

CHANNEL_TABLES: Final = (
    "vars",
    "channels",
    "shachains",
    "shachain_known",
    "channel_htlcs",
    "channel_funding_inflights",
    "channel_configs",
    "channel_feerates",
    "channel_blockheights",
    "htlc_sigs",
    "penalty_bases",
    "local_anchors",
    "channeltxs",
    "peers",
)
"""The tables that hold lightningd's channels, in any of its releases; a database has some of them.
`vars` comes first: it has the data version."""

LIGHTNINGDS_TABLES: Final = frozenset(CHANNEL_TABLES) | frozenset(
    (
        *("addresses", "blocks", "chain_moves", "channel_moves", "channel_state_changes"),
        *("datastore", "db_upgrades", "forwarded_payments", "forwards", "invoice_fallbacks"),
        *("invoicerequests", "invoices", "move_accounts", "network_events", "offers", "outputs"),
        *("payments", "runes", "runes_blacklist", "transaction_annotations", "transactions"),
        *("utxoset", "version"),
    )
)
"""The tables of lightningd up to 26.06, in any of its releases (`wallet/db.c`). A migration that
makes another one also raises the number in `version`."""

_DOMAIN: Final = b"cln-backup content 1"
_GONE: Final = "is missing in the database"
_NEW: Final = "is missing in the backup"
_OTHER: Final = "is defined differently"
_WHOLE_TABLE: Final = frozenset(f"the table {what}" for what in (_GONE, _NEW, _OTHER))
_HASH_BYTES: Final = 32
_MODULUS: Final = 1 << (8 * _HASH_BYTES)
_LOOK_EVERY_ROWS: Final = 1_000
_LOOK_EVERY_STEPS: Final = 10_000


class Difference(NamedTuple):
    """A difference between two databases, without contents.

    Attributes:
        table: where it is.
        detail: what it is: names and counts.
        is_index: whether it is only an index, trigger or view, which holds no data.
    """

    table: str
    detail: str
    is_index: bool = False

    @property
    def is_foreign(self) -> bool:
        """Whether it is about a whole table that is not lightningd's: another program's."""
        is_whole = self.detail in _WHOLE_TABLE and not self.is_index
        return is_whole and self.table not in LIGHTNINGDS_TABLES

    @property
    def matters(self) -> bool:
        """Whether it is about what lightningd stores."""
        return not self.is_index and not self.is_foreign


class Comparison(NamedTuple):
    """The result of a comparison.

    Attributes:
        differences: none if what was compared is the same.
        compared: the tables whose rows were compared to their end.
        left: the tables that were not reached, or not finished, in the time.
    """

    differences: tuple[Difference, ...]
    compared: tuple[str, ...]
    left: tuple[str, ...]


class Counts:
    """Counts the rows in which two tables differ.

    Attributes:
        differ: rows whose key is in both, with different values.
        missing: rows that only the backup has.
        extra: rows that only the database has.
    """

    def __init__(self) -> None:
        self.differ = self.missing = self.extra = 0

    @property
    def are_zero(self) -> bool:
        """Whether no difference was found."""
        return not (self.differ or self.missing or self.extra)

    def add(self, more: Counts) -> None:
        """Adds the differences of another part of the same table."""
        self.differ += more.differ
        self.missing += more.missing
        self.extra += more.extra

    def count(
        self,
        replica: Iterator[tuple[bytes, bytes]],
        database: Iterator[tuple[bytes, bytes]],
    ) -> Iterator[None]:
        """Compares keys and digests of rows, both in the order of keys, step by step."""
        our, their = next(replica, None), next(database, None)
        while our is not None or their is not None:
            if their is None or (our is not None and our[0] < their[0]):
                self.missing += 1
                our = next(replica, None)
            elif our is None or their[0] < our[0]:
                self.extra += 1
                their = next(database, None)
            else:
                self.differ += our[1] != their[1]
                our, their = next(replica, None), next(database, None)
            yield

    def told(self) -> str | None:
        """The counts in words; `None` if no row differs."""
        parts = []
        if self.differ:
            parts.append(f"{_rows(self.differ)} {'differs' if self.differ == 1 else 'differ'}")
        if self.missing:
            parts.append(f"{_rows(self.missing)} {_is(self.missing)} missing in the database")
        if self.extra:
            parts.append(f"{_rows(self.extra)} {_is(self.extra)} missing in the backup")
        return ", ".join(parts) or None


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number} rows"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


class TableDigest(NamedTuple):
    """A table's number of rows and the digest of its rows, as `docs/format.md` defines it."""

    table: str
    rows: int
    digest: bytes


def table_digest(connection: apsw.Connection, table: Table) -> TableDigest:
    """The digest of one table's rows. Raises `apsw.Error`, `Interrupted`."""
    number = total = 0
    stream = sha256()
    for number, row in enumerate(rows_of(connection, table), 1):
        if table.is_ordered:
            stream.update(row)
        else:
            total += int.from_bytes(sha256(row).digest(), "big")
        if number % _LOOK_EVERY_ROWS == 0:
            interruption.check()
    if table.is_ordered:
        return TableDigest(table.name, number, stream.digest())
    return TableDigest(table.name, number, (total % _MODULUS).to_bytes(_HASH_BYTES, "big"))


def table_digests(connection: apsw.Connection) -> list[TableDigest]:
    """The digests of all tables, in the order of their names' bytes. Raises `StorageError`."""
    try:
        return [table_digest(connection, table) for table in tables_of(connection).values()]
    except apsw.Error as error:
        raise unreadable(error) from error


def digest(connection: apsw.Connection, tables: Iterable[TableDigest] | None = None) -> bytes:
    """The digest of a database's content, 32 bytes; memory does not grow with it.

    The caller sees to it that the database does not change meanwhile, with a transaction. `tables`
    are its `table_digests`, if they are known already. Raises `StorageError`.
    """
    try:
        schema = sha256(b"".join(map(encode, schema_of(connection)))).digest()
    except apsw.Error as error:
        raise unreadable(error) from error
    found = sha256(_DOMAIN + schema)
    for table in table_digests(connection) if tables is None else tables:
        found.update(encode(table))
    return found.digest()


def compare(
    replica: apsw.Connection,
    database: apsw.Connection,
    tables: Iterable[str] | None = None,
    until: float | None = None,
) -> Comparison:
    """Compares the content of a backup's replica with that of the node's database.

    Neither may change meanwhile. The whole schema is compared, and the rows of `tables`, in this
    order (those that exist); by default of all, those with channels first. At `until`
    (`time.monotonic`) it stops. Memory does not grow with the databases.

    Raises:
        StorageError: one of them is locked, damaged, or its disk failed.
    """
    try:
        with _interrupted(replica, until), _interrupted(database, until):
            return _compare(replica, database, tables, until)
    except apsw.Error as error:
        raise unreadable(error) from error


@contextmanager
def _interrupted(connection: apsw.Connection, until: float | None) -> Iterator[None]:
    """Ends a statement that runs at `until`, as one that sorts, with `apsw.InterruptError`."""
    if until is None:
        yield
        return
    connection.set_progress_handler(lambda: time.monotonic() >= until, _LOOK_EVERY_STEPS)
    try:
        yield
    finally:
        connection.set_progress_handler(None)


def _compare(
    replica: apsw.Connection,
    database: apsw.Connection,
    tables: Iterable[str] | None,
    until: float | None,
) -> Comparison:
    differences = schema_differences(schema_of(replica), schema_of(database))
    ours, theirs = tables_of(replica), tables_of(database)
    both = in_order(name for name in ours if name in theirs)
    wanted = both if tables is None else [name for name in dict.fromkeys(tables) if name in both]
    other_columns = {name for name in both if ours[name].columns != theirs[name].columns}
    compared, left = [], []
    for name in wanted:
        if name in other_columns:  # reported with the schema
            continue
        try:
            detail = _difference(replica, database, ours[name], theirs[name], until)
        except (_TimeIsUp, apsw.InterruptError):
            left.append(name)
            continue
        compared.append(name)
        if detail is not None:
            differences.append(Difference(name, detail))
    return Comparison(tuple(differences), tuple(compared), tuple(left))


def in_order(names: Iterable[str]) -> list[str]:
    """Names of tables with those of channels first."""
    rank = {name: number for number, name in enumerate(CHANNEL_TABLES)}
    return sorted(names, key=lambda name: (rank.get(name, len(rank)), name))


def schema_differences(
    replica: Iterable[SchemaRow], database: Iterable[SchemaRow]
) -> list[Difference]:
    """The differences between a backup's schema and that of the node's database."""
    ours = {(row.type, row.name): row for row in replica}
    theirs = {(row.type, row.name): row for row in database}
    found = []
    for kind, name in sorted(ours.keys() | theirs.keys()):
        our, their = ours.get((kind, name)), theirs.get((kind, name))
        if our == their:
            continue
        row = our or their
        assert row is not None
        if their is None:
            what = _GONE
        elif our is None:
            what = _NEW
        else:
            what = _OTHER
        detail = f"the {kind} {what}" if kind == "table" else f"the {kind} {name} {what}"
        found.append(Difference(row.table, detail, is_index=kind != "table"))
    return found


class _TimeIsUp(Exception):
    pass


def _difference(
    replica: apsw.Connection,
    database: apsw.Connection,
    ours: Table,
    theirs: Table,
    until: float | None,
) -> str | None:
    """Compares the rows of a table; what differs, if something does."""
    if _are_equal(rows_of(replica, ours), rows_of(database, theirs), until):
        return None
    return _counted(replica, database, ours, until)


def _are_equal(ours: Generator[bytes], theirs: Generator[bytes], until: float | None) -> bool:
    """Whether the rows are the same in the same order, as the same statements make them."""
    with closing(ours), closing(theirs):
        pairs = zip_longest(ours, theirs)
        while True:
            _look_at(until)
            number = 0
            for our, their in islice(pairs, _LOOK_EVERY_ROWS):
                if our != their:
                    return False
                number += 1
            if number < _LOOK_EVERY_ROWS:
                return True


def _look_at(until: float | None) -> None:
    if until is not None and time.monotonic() >= until:
        raise _TimeIsUp


def _counted(
    replica: apsw.Connection, database: apsw.Connection, table: Table, until: float | None
) -> str | None:
    """How many rows of a table differ; `None` if only their order does."""
    counts = Counts()
    try:
        ours, theirs = (hashed_in_key_order(each, table) for each in (replica, database))
        for number, _ in enumerate(counts.count(ours, theirs)):
            if number % _LOOK_EVERY_ROWS == 0:
                _look_at(until)
    except (_TimeIsUp, apsw.InterruptError):
        if not counts.are_zero:
            return counts.told()
        if not table.is_ordered:  # perhaps only the order of insertion differs
            raise
        return "rows differ"
    return counts.told()


def in_words(differences: Iterable[Difference]) -> str:
    """The differences, for a message; empty if there are none."""
    by_table: dict[str, list[str]] = {}
    for one in differences:
        by_table.setdefault(one.table, []).append(one.detail)
    return "; ".join(f"{table}: {', '.join(details)}" for table, details in by_table.items())


def unreadable(error: apsw.Error) -> StorageError:
    """SQLite's error as one of ours, without contents."""
    return StorageError(
        "Cannot compare the backup with the node's database: SQLite reports "
        f"{result_of(error)}. Nothing was changed."
    )


def result_of(error: apsw.Error) -> str:
    """The name of SQLite's result, without contents."""
    name = apsw.mapping_result_codes.get(getattr(error, "result", -1), type(error).__name__)
    return str(name)
