"""What the README and the pages about a stopped node must have."""

from __future__ import annotations

import ast
import errno
import functools
import os
import re
from pathlib import Path

import pytest

from cln_backup.node.settings import LOCK_NAME

_ROOT = Path(__file__).parents[2]
_README = (_ROOT / "README.md").read_text(encoding="utf-8")
_TASKS = _ROOT / "docs" / "tasks"
_STOPS = (_TASKS / "when-the-node-stops.md").read_text(encoding="utf-8")
_RESTORING = (_TASKS / "restoring.md").read_text(encoding="utf-8")


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


@functools.cache
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
