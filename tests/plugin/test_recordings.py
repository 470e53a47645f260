"""Recordings of real nodes, the whole way: simulated node, plugin, file, restore."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import captured
from tests.plugin.home import CAPTURES, KINDS, Home
from tests.soak import SOAK

_MIGRATIONS = (
    "channel_htlcs-pre-pagination",
    "dangling-peer",
    "invoices_pre_waitindex",
    "l1-before-moves-in-db",
    "last_tx_closed",
    "oldstyle-scids",
    "upgrade_inflight",
    "v0.12.1-forward",
)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in KINDS
        for name in captured.SMALL
        if SOAK or kind == "file" or name == "router"
    ],
)
def test_a_day_of_a_node_from_nothing(home: Home, tmp_path: Path, name: str) -> None:
    home.init()
    capture = CAPTURES / "small" / name
    home.run("--capture", f"{capture}.jsonl.xz")
    recorded = captured.unpacked(Path(f"{capture}.sqlite3.xz"), tmp_path / "recorded.sqlite3")
    home.require_same(home.database, recorded)


def test_a_node_killed_three_times_while_it_started(home: Home, tmp_path: Path) -> None:
    home.init()
    home.run("--capture", f"{captured.CRASH}.jsonl.xz")
    recorded = Path(f"{captured.CRASH}.sqlite3.xz")
    home.require_same(home.database, captured.unpacked(recorded, tmp_path / "recorded.sqlite3"))
    assert "Last changes not applied" in home.log()


@pytest.mark.timeout(300)
@pytest.mark.skipif(not SOAK, reason="CLN_BACKUP_SOAK is not set; takes 20 s for each kind")
def test_six_hundred_payments(home: Home, tmp_path: Path, large_captures: Path) -> None:
    home.init()
    folder = large_captures / "payments600"
    home.run("--capture", str(folder / "payee.jsonl.xz"))
    recorded = captured.unpacked(folder / "payee.sqlite3.xz", tmp_path / "recorded.sqlite3")
    home.require_same(home.database, recorded)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for number, name in enumerate(_MIGRATIONS)
        for kind in KINDS
        if SOAK or kind == KINDS[number % len(KINDS)]
    ],
)
def test_a_migration_of_an_older_database(
    home: Home, tmp_path: Path, large_captures: Path, name: str
) -> None:
    folder = large_captures / "migrations" / name
    captured.unpacked(folder / "before.sqlite3.xz", home.database)
    home.init()
    home.run("--capture", str(folder / "writes.jsonl.xz"))
    home.require_same(
        home.database, captured.unpacked(folder / "after.sqlite3.xz", tmp_path / "after.sqlite3")
    )


def test_every_recorded_migration_is_tried(large_captures: Path) -> None:
    assert sorted(_MIGRATIONS) == sorted(os.listdir(large_captures / "migrations"))


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
def test_texts_that_are_no_utf8_come_back_byte_for_byte(home: Home, journal_mode: str) -> None:
    home.init()
    home.run("--generate", "150", "--invalid-utf8", "--journal-mode", journal_mode)
    home.require_same(home.database)


def test_a_change_larger_than_the_mailbox(home: Home) -> None:
    home.init()
    home.run("--generate", "20", "--database-mb", "48")
    home.require_same(home.database)


def test_a_wallet_elsewhere_is_remembered(home: Home, tmp_path: Path) -> None:
    wallet = tmp_path / "elsewhere" / "wallet.sqlite3"
    wallet.parent.mkdir()
    home.run("--generate", "30", "--wallet", str(wallet), "--plugin-name", "none", code=None)
    wallet.unlink(missing_ok=True)
    home.init("--wallet", str(wallet))
    home.run("--generate", "30", "--wallet", str(wallet))
    home.require_same(wallet)
    assert str(wallet) in (home.directory / "backup.lock").read_text()
