"""Whether a database descends from what a backup holds: nothing that only grows is smaller in it.

The data version does not tell: an old copy of a database overtakes a backup by blocks alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import apsw

from cln_backup.replay.content import unreadable
from cln_backup.replay.tables import fetched, quoted, typed_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_COUNTERS: Final = ("next_index_local", "next_index_remote", "next_htlc_id")
_SHACHAIN_START: Final = 1 << 48
"""`min_index` of a chain without secrets; each secret lowers it by one (ccan/crypto/shachain)."""

_OPENING: Final = frozenset((1, 2, 11, 12, 14))
"""Values of `channels.state` from which lightningd may remove a channel (`channel_state.h`)."""

_VARIABLES: Final = (
    "name IN ('bip32_max_index', 'bip86_max_index', 'next_pay_index') "
    "OR (name GLOB 'last_*_index' AND name <> 'last_invoice_created_index')"
)
"""`last_invoice_created_index` was a typing error, which a migration removes."""

_NEWEST: Final = 1_000
_MOVES: Final = (
    "tag_bitmap",
    "credit_or_debit",
    "timestamp",
    "utxo",
    "spending_txid",
    "peer_id",
    "payment_hash",
    "payment_part_id",
    "payment_group_id",
    "block_height",
    "output_sat",
    "output_count",
    "fees",
)
"""The columns that never change; the closing of a channel changes those of the account."""

_INVOICE: Final = ("payment_hash", "payment_key", "msatoshi", "label")
_PAID_INVOICE: Final = ("pay_index", "msatoshi_received", "paid_timestamp")


class Behind(NamedTuple):
    """Something that only grows, and is smaller in the database than in the backup.

    Attributes:
        what: its name.
        database: its value there; `None` if it is missing.
        backup: its value in the backup.
    """

    what: str
    database: int | None
    backup: int


def behind(replica: apsw.Connection, database: apsw.Connection) -> tuple[Behind, ...]:
    """Finds what is smaller in a database than in the replica; nothing, if it descends from it.

    Compares each channel's commitments, HTLCs and revocations, the variables that count, and the
    newest of the rows that are only ever added. The two may have schemas of different releases.

    Raises:
        StorageError: one of them is locked, damaged, or its disk failed.
    """
    try:
        return (
            *_channels_behind(replica, database),
            *_variables_behind(replica, database),
            *_moves_behind("channel_moves", replica, database),
            *_moves_behind("chain_moves", replica, database),
            *_invoices_behind(replica, database),
        )
    except apsw.Error as error:
        raise unreadable(error) from error


def _columns(connection: apsw.Connection, table: str) -> frozenset[str]:
    rows = fetched(connection, "SELECT name FROM pragma_table_info(?)", (table,))
    return frozenset(name for (name,) in rows)


class _Channel(NamedTuple):
    """The counters of a channel; `may_vanish` until its funding is confirmed."""

    numbers: dict[str, int]
    may_vanish: bool


def _channels_behind(replica: apsw.Connection, database: apsw.Connection) -> Iterator[Behind]:
    there = _channels(database)
    for key, ours in _channels(replica).items():
        name = f"channel {key.hex()}"
        theirs = there.get(key)
        if theirs is None:
            if not ours.may_vanish:
                yield Behind(name, None, ours.numbers["next_index_local"])
            continue
        for what, number in ours.numbers.items():
            found = theirs.numbers.get(what)
            if found is None or found < number:
                yield Behind(f"{what} of {name}", found, number)


def _channels(connection: apsw.Connection) -> dict[bytes, _Channel]:
    """The channels by their id. A peer can make two have the same; the larger numbers count."""
    has = _columns(connection, "channels")
    if not has.issuperset((*_COUNTERS, "funding_tx_id", "shachain_remote_id")):
        return {}
    full_id = "c.full_channel_id" if "full_channel_id" in has else "NULL"
    scids = [f"c.{name}" for name in ("scid", "short_channel_id") if name in has]
    rows = fetched(
        connection,
        f"SELECT {full_id}, c.funding_tx_id, c.funding_tx_outnum, c.state, "
        f"coalesce({', '.join((*scids, 'NULL'))}) IS NOT NULL, s.min_index, "
        f"{', '.join('c.' + name for name in _COUNTERS)} "
        "FROM channels c LEFT JOIN shachains s ON s.id = c.shachain_remote_id",
    )
    found: dict[bytes, _Channel] = {}
    for channel_id, funding, output, state, is_confirmed, min_index, *counters in rows:
        key = channel_id if isinstance(channel_id, bytes) else _derived_id(funding, output)
        if key is None:
            continue
        numbers = {
            name: number
            for name, number in zip(_COUNTERS, counters, strict=True)
            if isinstance(number, int)
        }
        if isinstance(min_index, int):
            numbers["revocations"] = _SHACHAIN_START - min_index
        before = found.get(key)
        if before is not None:
            numbers = {
                name: max(number, before.numbers.get(name, 0)) for name, number in numbers.items()
            } | {name: n for name, n in before.numbers.items() if name not in numbers}
        found[key] = _Channel(numbers, not is_confirmed or state in _OPENING)
    return found


def _derived_id(funding: object, output: object) -> bytes | None:
    """The channel's id, as releases had it that did not store it (`derive_channel_id`)."""
    if not isinstance(funding, bytes) or not isinstance(output, int) or len(funding) < 2:
        return None
    end = int.from_bytes(funding[-2:], "big") ^ (output & 0xFFFF)
    return funding[:-2] + end.to_bytes(2, "big")


def _variables_behind(replica: apsw.Connection, database: apsw.Connection) -> Iterator[Behind]:
    there = _variables(database)
    for name, number in _variables(replica).items():
        found = there.get(name)
        if number > 0 and (found is None or found < number):
            yield Behind(name, found, number)


def _variables(connection: apsw.Connection) -> dict[str, int]:
    has = _columns(connection, "vars")
    if "val" not in has:
        return {}
    value = "coalesce(intval, CAST(val AS INTEGER))" if "intval" in has else "CAST(val AS INTEGER)"
    rows = fetched(connection, f"SELECT name, {value} FROM vars WHERE {_VARIABLES}")
    return {name: number for name, number in rows if isinstance(number, int)}


def _moves_behind(
    table: str, replica: apsw.Connection, database: apsw.Connection
) -> Iterator[Behind]:
    """A divergence shows in the newest rows: each has a time in nanoseconds, and keeps its id.

    The schema's version tells whether a migration ran, which may have removed doubled rows.
    """
    if not _columns(replica, table):
        return
    [(rows, last)] = fetched(replica, f"SELECT count(*), max(id) FROM {table}")
    if not rows:
        return
    columns = _common((replica, database), table, _MOVES)
    if not columns:
        yield Behind(f"rows of {table}", None, rows)
        return
    [(found,)] = fetched(database, f"SELECT count(*) FROM {table} WHERE id <= ?", (last,))
    migrated = _schema_version(database) != _schema_version(replica)
    if found < rows and not (migrated and table == "chain_moves"):
        yield Behind(f"rows of {table}", found, rows)
        return
    newest = f"WHERE id <= ? ORDER BY id DESC LIMIT {_NEWEST}"
    ours = dict(_by_id(replica, table, columns, newest, last))
    theirs = dict(_by_id(database, table, columns, newest, last))
    same = sum(theirs.get(key) == row for key, row in ours.items())
    gone = sum(key not in theirs for key in ours) if migrated and table == "chain_moves" else 0
    if same + gone < len(ours):
        yield Behind(f"rows of {table} that are the same, of the newest", same, len(ours))


def _schema_version(connection: apsw.Connection) -> object:
    return fetched(connection, "SELECT max(version) FROM version")


def _common(
    connections: Iterable[apsw.Connection], table: str, columns: tuple[str, ...]
) -> tuple[str, ...]:
    common = frozenset(columns).intersection(*(_columns(one, table) for one in connections))
    return tuple(name for name in columns if name in common)


def _by_id(
    connection: apsw.Connection, table: str, columns: tuple[str, ...], where: str, *values: object
) -> Iterator[tuple[int, bytes]]:
    for key, row in typed_rows(connection, table, "id", columns, where, values):
        if isinstance(key, int):
            yield key, row


def _invoices_behind(replica: apsw.Connection, database: apsw.Connection) -> Iterator[Behind]:
    """Invoices may be deleted, and without explicit ids (before 23.08) the last id was reused."""
    both = (replica, database)
    fixed = _common(both, "invoices", _INVOICE)
    paid = _common(both, "invoices", _PAID_INVOICE)
    if "payment_hash" not in fixed or "pay_index" not in paid:
        return
    checks = (
        ("invoices", "id", fixed, f"ORDER BY id DESC LIMIT {_NEWEST}"),
        (
            "paid invoices",
            "payment_hash",
            paid,
            f"WHERE pay_index IS NOT NULL ORDER BY pay_index DESC LIMIT {_NEWEST}",
        ),
    )
    for what, key, columns, newest in checks:
        if what == "invoices" and "last_invoices_created_index" not in _variables(replica):
            continue
        same = number = 0
        for value, row in typed_rows(replica, "invoices", key, columns, newest):
            where = f"WHERE {quoted(key)} = ?"
            found = [
                row for _, row in typed_rows(database, "invoices", key, columns, where, (value,))
            ]
            if found:
                number += 1
                same += found[0] == row
        if same < number:
            yield Behind(f"{what} that are the same, of the newest", same, number)
