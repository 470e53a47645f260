"""lightningd's option `wallet` names a database, and an old one is in the network directory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cln_backup.model.errors import BadSettings
from cln_backup.node import outside as node
from cln_backup.operations.initialize import initialize, take_snapshot
from tests.histories import build_database, payment, started_node
from tests.plugin.home import CAPTURES, ROOT, Home

if TYPE_CHECKING:
    from pathlib import Path


_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))


def test_start_and_snapshot_do_not_send_round_in_a_circle(tmp_path: Path) -> None:
    """`snapshot` took the stale database again and again, and the start halted again and again."""
    home, wallet = Home(tmp_path), tmp_path / "elsewhere.sqlite3"
    home.init()
    home.set_options(on_gap="halt")
    home.run(*_ROUTER, "--calls", "40")
    shutil.copy(home.database, wallet)  # and lightningd.sqlite3 stays, and gets old
    home.run(*_ROUTER, "--calls", "10", "--wallet", str(wallet))
    home.require_same(wallet)
    said = f"The node's database is {wallet}, but {home.directory}/backup.lock names"
    assert said in home.log()

    without_plugin = [sys.executable, "-m", "simulator", str(home.directory), *_ROUTER]
    until = ["--until", "80", "--wallet", str(wallet)]
    subprocess.run([*without_plugin, *until], cwd=ROOT, check=True)
    report = home.run(*_ROUTER, "--calls", "10", "--wallet", str(wallet), code=None)
    assert report["committed"] == 0
    (line, *_) = [line for line in home.log().splitlines() if "Backup is out of date" in line]
    assert f"the database {wallet} is at version" in line
    assert "Correct backup.lock before you use backup-cli, which would use the wrong one" in line
    assert f'"wallet": "{wallet}"' in line


def test_snapshot_that_brings_nothing_new_says_so(tmp_path: Path) -> None:
    home = Home(tmp_path)
    build_database(home.database, started_node())
    home.init()
    said = home.cli("snapshot", "--lightning-dir", str(home.directory))
    assert f"added, from {home.database}" in said
    assert "nothing seems to have been missing" in said
    assert f"it uses a different database than {home.database}" in said


@pytest.mark.parametrize("where", ["regtest/config", "config"])
@pytest.mark.parametrize("wallet", ["sqlite3:///elsewhere/node.sqlite3", "other.sqlite3"])
def test_configured_wallet_that_is_not_named_to_init_is_refused(
    where: str, wallet: str, tmp_path: Path
) -> None:
    directory = tmp_path / "regtest"
    directory.mkdir()
    build_database(directory / "lightningd.sqlite3", started_node())
    (tmp_path / where).write_text(f"# mine\nnetwork=regtest\nwallet={wallet}\n")
    url = f"dir://{tmp_path}/backup"
    with pytest.raises(BadSettings, match=f"{where} says wallet={wallet}.*--wallet {wallet}"):
        initialize(url, str(directory))
    assert not (tmp_path / "backup").exists()
    initialize(url, str(directory), "lightningd.sqlite3")
    (directory / "backup.lock").write_text(f'{{"backend_url": "{url}"}}')
    with pytest.raises(BadSettings, match="says wallet="):
        take_snapshot(str(directory))


@pytest.mark.parametrize("line", ["wallet=lightningd.sqlite3", "#wallet=x", "wallets=x", "wallet"])
def test_configuration_that_names_no_other_database_is_no_matter(line: str, tmp_path: Path) -> None:
    directory = tmp_path / "regtest"
    directory.mkdir()
    build_database(directory / "lightningd.sqlite3", started_node())
    (tmp_path / "config").write_text(line)
    assert node.find_database(str(directory), None) == f"{directory}/lightningd.sqlite3"


def test_database_that_a_process_has_open_is_found(tmp_path: Path) -> None:
    stale, used = tmp_path / "lightningd.sqlite3", tmp_path / "used.sqlite3"
    build_database(used, [*started_node(), payment(4)])
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); "
        "c.execute('PRAGMA user_version'); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, used], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert node.database_in_use(process.pid, str(stale)) == str(used), "there is no stale one"
        shutil.copy(used, stale)
        assert node.database_in_use(process.pid, str(stale)) == str(used)
        assert node.database_in_use(process.pid, str(used)) == str(used)
        link = tmp_path / "link"
        link.symlink_to(used)
        assert node.database_in_use(process.pid, str(link)) == str(link)
    assert node.database_in_use(process.pid, str(stale)) == str(stale), "nothing can be told"
