"""The steps of the README and of the runbook, as they are written there."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cln_backup.node.settings import LOCK_NAME
from tests.histories import assert_same_database, build_database, started_node

_ROOT = Path(__file__).parents[2]
_README = (_ROOT / "README.md").read_text(encoding="utf-8")
_TASKS = _ROOT / "docs" / "tasks"
_STOPS = (_TASKS / "when-the-node-stops.md").read_text(encoding="utf-8")
_RESTORING = (_TASKS / "restoring.md").read_text(encoding="utf-8")
_CLI = Path(sys.executable).with_name("backup-cli")


def _commands(document: str, heading: str) -> str:
    """The commands that a section has one type, as a script, without lightningd's own tools."""
    section = re.split(r"^## ", document.partition(f"# {heading}\n")[2], flags=re.MULTILINE)[0]
    assert section, f"there is no section {heading}"
    typed = re.sub(r"\\\n +", "", "\n".join(section.split("```")[1::2]))
    lines = [line.strip() for line in typed.splitlines()]
    left_out = ("lightning-", "important-plugin=")
    return "\n".join(line for line in lines if not line.startswith(left_out))


def _run(script: str, replacements: list[tuple[str, str]], directory: Path) -> None:
    for there, here in replacements:
        assert there in script
        script = script.replace(there, here)
    done = subprocess.run(
        ["bash", "-ec", script], capture_output=True, text=True, check=False, cwd=directory
    )
    assert done.returncode == 0, f"{script}\n{done.stderr}"


def test_quick_start_makes_a_backup_that_restores(tmp_path: Path) -> None:
    node, backup, look = (tmp_path / name for name in ("node", "backup", "look.sqlite3"))
    node.mkdir()
    expected = build_database(node / "lightningd.sqlite3", started_node())
    (node / "hsm_secret").write_bytes(bytes(range(32)))
    script = _commands(_README, "Quick start")
    kept = f"cp {look} {look}.kept"
    replacements = [
        ("backup-cli", shlex.quote(str(_CLI))),
        ("--words", f"--hsm-secret {shlex.quote(f'{node}/hsm_secret')}"),
        ("/mnt/backup/node", str(backup)),
        ("~/.lightning/bitcoin", str(node)),
        ("/tmp/look.sqlite3", str(look)),  # noqa: S108 - replaced, never used
        (f"&& rm {look}", f"&& {kept} && rm {look}"),
    ]
    _run(script, replacements, tmp_path)
    assert_same_database(Path(f"{look}.kept"), expected)
    assert not look.exists()
    assert "key-file=" in json.loads((node / "backup.lock").read_text())["backend_url"]


def test_restoring_ends_with_the_node_and_without_the_key_of_the_lost_machine(
    tmp_path: Path,
) -> None:
    lost, new, backup, copy = (tmp_path / name for name in ("lost", "new", "backup", "copy"))
    lost.mkdir()
    copy.mkdir()
    expected = build_database(lost / "lightningd.sqlite3", started_node())
    (lost / "hsm_secret").write_bytes(bytes(range(32)))
    (copy / "hsm_secret").write_bytes(bytes(range(32)))
    subprocess.run([_CLI, "init", "--encrypt", "--lightning-dir", lost, backup], check=True)
    replacements = [
        ("backup-cli", shlex.quote(str(_CLI))),
        ("--words", f"--hsm-secret {shlex.quote(f'{copy}/hsm_secret')}"),
        ("/mnt/backup/node", str(backup)),
        ("~/.lightning/bitcoin", str(new)),
        ("/home/ln/.lightning/bitcoin", str(new)),
        ("/the/copy", str(copy)),
    ]
    _run(_commands(_RESTORING, "Restoring"), replacements, tmp_path)
    assert_same_database(new / "lightningd.sqlite3", expected)
    assert (new / "hsm_secret").read_bytes() == (lost / "hsm_secret").read_bytes()

    url = json.loads((new / "backup.lock").read_text())["backend_url"]
    for unlocking, code in ([url], 0), (["--key-file", lost / "backup.key", backup], 17):
        found = subprocess.run([_CLI, "status", *unlocking], check=False)
        assert found.returncode == code


def test_readme_fits_one_reading() -> None:
    assert len(_README.split()) <= 900


def test_what_one_searches_for_is_there() -> None:
    command = "lightning-hsmtool getsecret ~/.lightning/bitcoin/hsm_secret"
    assert command in _README, "the words on paper"
    back = "lightning-hsmtool generatehsm ~/.lightning/bitcoin/hsm_secret"
    assert back in _RESTORING
    assert "lightning-cli graceful" in (_TASKS / "moving-a-node.md").read_text(encoding="utf-8")
    limits = (_TASKS / "limits.md").read_text(encoding="utf-8")
    for document in (_README, limits):
        assert "exactly one change older than the backup, put there by hand" in document
    explained = (_TASKS / "interrupted-migration.md").read_text(encoding="utf-8")
    for error in _OF_LIGHTNINGD:
        for document in (_STOPS, explained):
            assert f"`{error}`" in document


_OF_LIGHTNINGD = (
    "duplicate column name",
    "no such column",
    "Invalid bitcoin transaction bytes",
)
_OF_OTHERS = (*_OF_LIGHTNINGD, "restore")
_OF_THE_SYSTEM = (os.strerror(errno.ENOSPC), os.strerror(errno.EIO))


def _text(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    return LOCK_NAME if "LOCK_NAME" in ast.dump(part) else "…"


def _messages() -> str:
    """Every text in the source, with `…` for what is filled in."""
    found = []
    for path in (_ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(map(_text, node.values)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


_QUOTING = {
    "docs/tasks/when-the-node-stops.md": "# When the node stops",
    "docs/tasks/restoring.md": "## When a restore fails",
    "docs/server.md": "## When the connection is lost",
}
"""The sections with a table whose first column quotes messages."""


@pytest.mark.parametrize("document", _QUOTING)
def test_messages_are_quoted_as_the_program_says_them(document: str) -> None:
    messages, text = _messages(), (_ROOT / document).read_text(encoding="utf-8")
    quoted = []
    table = re.split(r"^#", text.partition(f"{_QUOTING[document]}\n")[2], flags=re.MULTILINE)[0]
    for row in re.findall(r"^\|([^|]*`[^|]*)\|", table, re.MULTILINE):
        quoted += re.findall(r"`([^`]+)`", row)
    assert len(quoted) > len(_OF_OTHERS)
    for phrase in quoted:
        if phrase not in _OF_OTHERS and not phrase.endswith(_OF_THE_SYSTEM):
            assert re.sub(r"\bN\b", "…", phrase) in messages, phrase


def test_phrases_in_the_log_that_stop_the_node_lead_to_the_runbook() -> None:
    section = _STOPS.partition("\n## ")[0]
    phrases = (_ROOT / "docs" / "cli.md").read_text("utf-8").partition("### Log phrases\n")[2]
    halting = re.findall(r"^\| `([^`]+)` \| BROKEN, ", phrases, re.MULTILINE)
    assert halting
    for phrase in halting:
        assert phrase in section, phrase


def test_every_error_leads_to_the_runbook() -> None:
    table = _STOPS.partition("\n## By exit code\n")[2].partition("\n## ")[0]
    for code in (4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 20):
        assert re.search(rf"^\|[^|]*\b{code}\b", table, re.MULTILINE), code
