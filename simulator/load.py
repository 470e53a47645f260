"""A generated load: the calls of a node that never was, the same for the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.calls import Call

if TYPE_CHECKING:
    from collections.abc import Iterator

START_CALLS = 5
"""How many calls every load begins with: the schema, as a new node of v26.06 writes it."""

START_VERSION = 3
"""The data version after them."""

BULK_ROW_BYTES = 4000  # with SQLite's own bytes one page of 4096
BULK_ROWS_A_CALL = 4096  # 16 MiB
BULK_PATTERN_BYTES = 128 * 1024
ROWS_A_MIB = 256

_SCHEMA = (
    "CREATE TABLE version (version INTEGER) STRICT",
    "INSERT INTO version VALUES (1)",
    (
        "CREATE TABLE vars (name TEXT, val TEXT, intval INTEGER, blobval BLOB, PRIMARY KEY (name))"
        " STRICT"
    ),
    "INSERT INTO vars (name, intval) VALUES ('data_version', 0);",
    "CREATE TABLE blocks (height INTEGER, hash BLOB, prev_hash BLOB, UNIQUE(height)) STRICT",
    "CREATE TABLE peers (id INTEGER PRIMARY KEY, node_id BLOB UNIQUE, address TEXT)",
    (
        "CREATE TABLE channels (id INTEGER PRIMARY KEY, peer_id INTEGER REFERENCES peers(id)"
        " ON DELETE CASCADE, state INTEGER, msatoshi_local INTEGER, last_tx BLOB, alias TEXT)"
    ),
    (
        "CREATE TABLE channel_htlcs (id INTEGER PRIMARY KEY AUTOINCREMENT, channel_id INTEGER"
        " REFERENCES channels(id) ON DELETE CASCADE, msatoshi INTEGER, payment_hash BLOB,"
        " routing_onion BLOB, hstate INTEGER, fee REAL)"
    ),
    "CREATE INDEX channel_htlcs_speedup ON channel_htlcs (channel_id) WHERE hstate NOT IN (9, 19)",
    (
        "CREATE TABLE invoices (id INTEGER PRIMARY KEY, state INTEGER, label TEXT UNIQUE,"
        " description TEXT, payment_key BLOB, obsolete TEXT)"
    ),
    "CREATE TABLE datastore (key BLOB, data BLOB, generation INTEGER, PRIMARY KEY (key))",
    "CREATE TABLE bulk (id INTEGER PRIMARY KEY, data BLOB)",
)

_TEXTS = (
    "a plain description",
    "it's one with 'quotes' and \"more\"",
    "two\nlines\r\nand\ta tab",
    "naïve café, Zürich, Ελλάδα, 日本語, ⚡",
    'back\\slash \\n and \x7f and {"json": [1, null]}',
    "",
)
_STRAY_BYTES = b"caf\xe9 \xff\xfe\x80".decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Load:
    """The parameters of the generator.

    Attributes:
        count: transactions after the start and the growth.
        seed: a different seed makes a different node, from its first call on.
        blob_bytes: mean size of the one large value in most transactions.
        stray_bytes: include texts with invalid UTF-8.
        database_mb: first grow the database to about this size, with 16 MiB a transaction and
            little SQL; 0 leaves that out.
    """

    count: int
    seed: int = 1
    blob_bytes: int = 1000
    stray_bytes: bool = False
    database_mb: int = 0


def generate(load: Load) -> Iterator[Call]:
    """Yield the calls of a load; the whole is the same each time, and memory holds one call.

    The first `START_CALLS` make the schema, two riders among them, as in a new node.
    """
    node = _Node(load)
    yield from node.start()
    yield from node.grow()
    for _ in range(load.count):
        yield node.transaction()


class _Node:
    """As much of a node as is needed to write SQL that makes sense."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._random = random.Random(load.seed)
        self._index = 0
        self._version = 0
        self._last_htlc = self._last_invoice = self._last_block = 0
        self._datastore_keys: list[bytes] = []
        self._texts = (*_TEXTS, _STRAY_BYTES) if load.stray_bytes else _TEXTS
        self._kinds = (
            self._add_htlc,
            self._add_htlc,
            self._settle_htlc,
            self._settle_htlc,
            self._add_invoice,
            self._pay_invoice,
            self._write_datastore,
            self._add_block,
        )

    def start(self) -> Iterator[Call]:
        """Make the schema: a transaction, foreign keys off, another, foreign keys on, a third."""
        yield self._call(list(_SCHEMA))
        yield self._rider("PRAGMA foreign_keys = OFF;")
        yield self._call(
            [
                "ALTER TABLE invoices RENAME TO temp_invoices;",
                (
                    "CREATE TABLE invoices (id INTEGER PRIMARY KEY, state INTEGER,"
                    " label TEXT UNIQUE, description TEXT, payment_key BLOB);"
                ),
                (
                    "INSERT INTO invoices SELECT id, state, label, description, payment_key"
                    " FROM temp_invoices;"
                ),
                "DROP TABLE temp_invoices;",
            ]
        )
        yield self._rider("PRAGMA foreign_keys = ON;")
        writes = [
            f"INSERT INTO vars (name, blobval) VALUES ('node_id', {self._blob(33)});",
            "INSERT INTO vars (name, intval) VALUES ('last_processed_block', 0);",
        ]
        for peer in range(1, 5):
            writes += [
                (
                    f"INSERT INTO peers (id, node_id, address) VALUES ({peer}, {self._blob(33)},"
                    f" '127.0.0.1:{9735 + peer}');"
                ),
                (
                    "INSERT INTO channels (id, peer_id, state, msatoshi_local) VALUES"
                    f" ({peer}, {peer}, 3, 1000000000);"
                ),
            ]
        yield self._call(writes)

    def grow(self) -> Iterator[Call]:
        """Add rows of random-looking bytes until the database has its size."""
        rows = self._load.database_mb * ROWS_A_MIB
        offsets = BULK_PATTERN_BYTES - BULK_ROW_BYTES
        while rows > 0:
            added = min(rows, BULK_ROWS_A_CALL)
            yield self._call(
                [
                    (
                        "INSERT INTO bulk (data) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL"
                        f" SELECT i + 1 FROM n WHERE i < {added})"
                        f" SELECT substr({self._blob(BULK_PATTERN_BYTES)},"
                        f" 1 + i * 7919 % {offsets}, {BULK_ROW_BYTES}) FROM n;"
                    )
                ]
            )
            rows -= added

    def transaction(self) -> Call:
        """Do one thing a node does, at times two of them at once."""
        writes = self._random.choice(self._kinds)()
        if self._random.random() < 0.1:
            writes += self._random.choice(self._kinds)()
        return self._call(writes)

    def _call(self, writes: list[str]) -> Call:
        writes.append(
            "UPDATE vars SET intval = intval + 1 WHERE name = 'data_version'"
            f" AND intval = {self._version}"
        )
        self._version += 1
        return self._rider(*writes)

    def _rider(self, *writes: str) -> Call:
        self._index += 1
        return Call(self._index - 1, self._version, writes)

    def _blob(self, size_bytes: int) -> str:
        return f"x'{self._random.randbytes(size_bytes).hex().upper()}'"

    def _large_blob(self) -> str:
        mean = self._load.blob_bytes
        return self._blob(min(int(self._random.expovariate(1) * mean), mean * 8)) if mean else "x''"

    def _text(self) -> str:
        return "'" + self._random.choice(self._texts).replace("'", "''") + "'"

    def _channel(self) -> int:
        return self._random.randint(1, 4)

    def _recent(self, last: int) -> int:
        return self._random.randint(max(1, last - 200), max(1, last))

    def _add_htlc(self) -> list[str]:
        self._last_htlc += 1
        channel, amount = self._channel(), self._random.randint(1, 10**9)
        return [
            (
                "INSERT INTO channel_htlcs (channel_id, msatoshi, payment_hash, routing_onion,"
                f" hstate, fee) VALUES ({channel}, {amount}, {self._blob(32)}, {self._blob(64)},"
                f" 0, {amount / 1e6!r});"
            ),
            (
                f"UPDATE channels SET msatoshi_local = {amount}, last_tx = {self._large_blob()},"
                f" alias = {self._text()} WHERE id = {channel};"
            ),
        ]

    def _settle_htlc(self) -> list[str]:
        htlc = self._recent(self._last_htlc)
        return [
            f"UPDATE channel_htlcs SET hstate = 9, routing_onion = NULL WHERE id = {htlc};",
            f"DELETE FROM channel_htlcs WHERE hstate = 9 AND id < {htlc - 150};",
            f"UPDATE channels SET last_tx = {self._large_blob()} WHERE id = {self._channel()};",
        ]

    def _add_invoice(self) -> list[str]:
        self._last_invoice += 1
        return [
            (
                "INSERT INTO invoices (state, label, description, payment_key) VALUES (0,"
                f" 'label-{self._last_invoice}', {self._text()}, {self._blob(32)});"
            )
        ]

    def _pay_invoice(self) -> list[str]:
        return [
            (
                f"UPDATE invoices SET state = 1, description = {self._text()}"
                f" WHERE id = {self._recent(self._last_invoice)};"
            ),
            f"DELETE FROM invoices WHERE state = 1 AND id < {self._last_invoice - 300};",
        ]

    def _write_datastore(self) -> list[str]:
        if self._datastore_keys and self._random.random() < 0.7:
            key = self._random.choice(self._datastore_keys)
            return [
                (
                    f"UPDATE datastore SET data = {self._large_blob()}, generation = generation + 1"
                    f" WHERE key = x'{key.hex()}';"
                )
            ]
        key = self._random.randbytes(12)
        self._datastore_keys.append(key)
        return [f"INSERT INTO datastore VALUES (x'{key.hex()}', CAST({self._text()} AS BLOB), 0);"]

    def _add_block(self) -> list[str]:
        self._last_block += 1
        height = self._last_block
        return [
            (
                f"INSERT INTO blocks (height, hash, prev_hash) VALUES ({height}, {self._blob(32)},"
                f" {self._blob(32)});"
            ),
            f"UPDATE vars SET intval={height} WHERE name='last_processed_block';",
            f"DELETE FROM blocks WHERE height < {height - 100};",
        ]
