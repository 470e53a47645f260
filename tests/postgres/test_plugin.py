"""A simulated node with its backup in a database: a recorded day, and all of the tool on it."""

from __future__ import annotations

import json
import lzma
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import redacted
from cln_backup.backends.secrets import secret_of_words
from tests import postgres_cluster
from tests.operations.test_undo_migration import BEFORE, MIGRATION
from tests.operations.test_whole_node import WORDS, Old, back, require_whole
from tests.plugin.home import CAPTURES, Home
from tests.plugin.test_undo_migration import capture
from tests.soak import SOAK
from tests.waiting import wait_for

if TYPE_CHECKING:
    from pathlib import Path

_CAPTURED = CAPTURES / "small"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A node's home, with an encrypted backup in a database."""
    made = Home(tmp_path)
    made.kind, made.url = "dir-encrypted", _unused(tmp_path)
    return made


def _unused(tmp_path: Path, name: str = "node") -> str:
    """The URL of no backup yet."""
    return postgres_cluster.shared().url(f"{postgres_cluster.node_of(tmp_path)}.{name}")


@pytest.mark.parametrize("node", ["payee", "payer", "router"] if SOAK else ["payee"])
def test_recorded_day_comes_back_from_a_database(home: Home, tmp_path: Path, node: str) -> None:
    """Compacted on its way, beside the node; then looked at, and copied to a directory and back."""
    home.follows = True
    said = home.cli("init", "--lightning-dir", str(home.directory), "--encrypt", home.url)
    assert "GRANT SELECT, INSERT, UPDATE, DELETE" in said
    home.url = json.loads((home.directory / "backup.lock").read_text())["backend_url"]
    day = ("--capture", str(_CAPTURED / f"{node}.jsonl.xz"), "--hold")
    running = home.start(*day, "--option", "backup-compact-max-changes=100")
    calls = lzma.decompress((_CAPTURED / f"{node}.jsonl.xz").read_bytes())
    home.wait_for_calls(len(calls.splitlines()))
    wait_for(
        lambda: home.call("backup-status"),
        lambda found: (
            found["last_compaction_at"] and not (found["compacting"] or found["next_compaction"])
        ),
        home.log,
        pause_s=0.05,
    )
    assert home.call("backup-compact", {"force": True})["after"]["version_count"] == 2
    home.call("stop")
    home.end(running)

    own, recorded = str(home.directory), tmp_path / "recorded.sqlite3"
    recorded.write_bytes(lzma.decompress((_CAPTURED / f"{node}.sqlite3.xz").read_bytes()))
    home.require_same(home.database, recorded)
    status = json.loads(home.cli("status", "--json", home.url))
    assert status["backend_url"] == redacted(home.url)
    assert "on the disk of the server" in status["durability"]
    assert "Good up to data version" in home.cli("verify", home.url)
    assert json.loads(home.cli("verify", "--json", "--against", own))["differences"] == ""
    assert json.loads(home.cli("drill", "--json", "--lightning-dir", own))["passed"]
    logged = home.cli("log", "--json", home.url).splitlines()
    assert json.loads(logged[-1])["version"] == status["version"]

    directory, back = f"dir://{tmp_path}/copied", _unused(tmp_path, "copy")
    home.cli("copy", home.url, directory)
    home.cli("copy", directory, back)
    home.url = back
    home.require_same(recorded)


def test_another_key_unlocks_it_and_is_removed(home: Home, tmp_path: Path) -> None:
    home.init()
    paper = tmp_path / "paper.key"
    home.cli("key", "add", "--new-key-file", str(paper), "--name", "paper", home.url)
    database = home.url.partition("&key-file=")[0]
    assert database != home.url
    assert "Good up to data version" in home.cli("verify", "--key-file", str(paper), database)
    home.cli("key", "remove", home.url, "paper")
    assert "paper" not in home.cli("key", "list", database)
    home.cli("verify", "--key-file", str(paper), database, code=17)


def test_promoted_while_the_old_node_runs(home: Home, tmp_path: Path) -> None:
    """The server is known to be the one that the old node writes to: nobody must vouch for it."""
    home.init()
    day = ("--capture", str(_CAPTURED / "router.jsonl.xz"))
    running = home.start(*day, "--rate", "10")
    home.wait_for_version(12)
    new = Home(tmp_path / "new")
    new.url = home.url
    said = new.cli("standby", "--promote", new.url, str(new.directory))
    home.end(running, code=None)
    assert "failed db_write" in home.stderr
    assert "has lost the right to write" in home.log()
    home.require_same(new.database)
    before = json.loads(new.cli("status", "--json", new.url))["version"]
    assert f"at data version {before}," in said
    new.run(*day, "--calls", "60")
    new.require_same(new.database)
    assert home.run(*day, code=None)["committed"] == 0


def test_migration_that_was_cut_is_undone(home: Home, tmp_path: Path) -> None:
    """The history starts over from a snapshot; the earlier one keeps a name of its own."""
    home.init()
    home.run("--capture", capture(tmp_path / "old.jsonl", BEFORE))
    before = tmp_path / "before.sqlite3"
    before.write_bytes(home.database.read_bytes())
    new = capture(tmp_path / "new.jsonl", [*BEFORE, *MIGRATION])
    home.run("--capture", new, "--crash", f"in-commit@{len(BEFORE) + 2}:step=done", code=None)
    said = home.cli("undo-migration", "--lightning-dir", str(home.directory))
    assert "to 8, before the migration" in said
    assert ".before-undo-" in said
    home.require_same(home.database, before)
    home.run("--capture", new)
    home.require_same(home.database)


def test_whole_node_is_back_from_a_database(tmp_path: Path) -> None:
    old = Old(tmp_path, url=_unused(tmp_path))
    new = tmp_path / "bare" / "bitcoin"
    back(old.url, new, secret_of_words(WORDS))
    require_whole(old, new)
