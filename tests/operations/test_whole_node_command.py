"""`backup-cli restore --node` as an operator types it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests import programs
from tests.cli.test_secrets import _on_a_terminal
from tests.docs.shape import unlike
from tests.documents import ROOT
from tests.operations.test_whole_node import WHOLE, Old, files_in, require_whole

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "docs/tasks/whole-node.md"
QUESTIONS = ("Is the old node off", "Did the node write to this very backup")


@pytest.fixture
def old(tmp_path: Path) -> Old:
    return Old(tmp_path)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "bare" / "bitcoin"


def test_operator_is_asked_what_only_they_know(
    old: Old, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    # Not --words: a secret that is typed before the echo is off would be lost.
    command = ("restore", "--node", new, "--hsm-secret", old.directory / "hsm_secret", old.url)
    for answers, code in ((("no",), 6), (("yes", "no"), 13), (("y",), 6)):
        asked = [*zip(QUESTIONS, answers, strict=False)]
        done, shown = _on_a_terminal(*command, answers=asked)
        assert done == code, shown
        assert not new.parent.exists()
    done, shown = _on_a_terminal(*command, answers=[(each, "yes") for each in QUESTIONS])
    assert done == 0, shown
    require_whole(old, new)
    assert f"hsm_secret belongs to this database: both are of the node {old.node_id}" in shown
    shown = re.sub(r"\x1b\[[0-9?;]*[A-Za-z]", "", shown)  # of the progress
    shown = shown.replace(str(new.parent), "/home/ln/.lightning")
    shown = shown.replace(old.url, "dir:///mnt/backup/node")
    assert not unlike(session_in_the_documents(), shown)


def session_in_the_documents() -> list[str]:
    """The lines after the command, in the page about a whole node, without those of the words."""
    page = (ROOT / PAGE).read_text()
    page = page.replace("\n   ", "\n")  # of an item of a list
    (block,) = re.findall(r"```text\n\$ backup-cli restore --node .*?\n(.*?)```", page, re.DOTALL)
    typed = ("Words", "Passphrase")
    return [line for line in str(block).splitlines() if not line.startswith(typed)]


def test_dry_run_changes_nothing(old: Old, new: Path) -> None:
    before = files_in(old.base.parent)
    done = programs.run("restore", "--node", new, "--dry-run", old.keyed)
    assert done.returncode == 0, done.stderr
    for name in WHOLE - {"bitcoin/hsm_secret"}:
        assert str(new.parent / name) in done.stdout or name.endswith("backup.lock")
    assert "This was a dry run: nothing was changed." in done.stdout
    assert files_in(old.base.parent) == before


def test_script_must_say_that_the_old_node_is_off(old: Old, new: Path) -> None:
    for options, missing in (((), "--old-node-is-off"), (("--old-node-is-off",), "--original")):
        done = programs.run("restore", "--node", new, *options, old.keyed)
        assert done.returncode == 12
        assert f"add {missing}" in done.stderr
        assert not new.parent.exists()
    sure = ("--old-node-is-off", "--original", "--json")
    done = programs.run("restore", "--node", new, *sure, old.keyed)
    assert done.returncode == 0, done.stderr
    fields = json.loads(done.stdout)
    assert fields["left"][0] == (
        f"Put hsm_secret into {new}, mode 0400. lightningd refuses one of another node."
    )
    assert fields["hsm_secret"] is None
    assert fields["path"] == str(new / "lightningd.sqlite3")
    assert fields["backend_url"] == f"{old.url}?key-file={new}/backup.key"
    assert fields["key_slot"] == "key-file-2"
    assert not fields["dry_run"]
    # A second restore finds the database.
    again = programs.run("restore", "--node", new, *sure, old.keyed)
    assert again.returncode == 5


@pytest.mark.parametrize(
    "arguments",
    [
        ("--node", "{new}", "{url}", "{new}"),
        ("--node", "{new}", "--to", "2", "{url}"),
        ("--dry-run", "{url}", "{new}"),
        ("--original", "{url}", "{new}"),
        ("{url}",),
    ],
)
def test_options_that_do_not_go_together(arguments: tuple[str, ...], old: Old, new: Path) -> None:
    typed = [each.format(new=new, url=old.keyed) for each in arguments]
    assert programs.run("restore", *typed).returncode == 2
    assert not new.parent.exists()
