"""Completion in the shells that are on this machine, and what it offers."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from click.shell_completion import BashComplete

from cln_backup.backends import create_backend
from cln_backup.cli.commands import cli
from tests.documents import ROOT
from tests.programs import CLI

if TYPE_CHECKING:
    from pathlib import Path

_DIR = ROOT / "contrib" / "completion"
_SHELLS = {
    "bash": f"""
        source {_DIR}/backup-cli.bash
        COMP_WORDS=(backup-cli sta) COMP_CWORD=1
        _backup_cli_completion backup-cli
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """,
    "zsh": f"""
        compdef() {{ : }}
        _describe() {{ print -l ${{completions_with_descriptions%%:*}} }}
        fpath=({_DIR} $fpath)
        autoload -Uz _backup-cli
        words=(backup-cli sta) CURRENT=2
        _backup-cli
    """,
    "fish": f"""
        source {_DIR}/backup-cli.fish
        complete -C 'backup-cli sta' | string replace -r '\\t.*' ''
    """,
}


def _offered(*words: str) -> list[tuple[str, str]]:
    """What a shell is told for the last of these words: types and values."""
    complete = BashComplete(cli, {}, "backup-cli", "_BACKUP_CLI_COMPLETE")
    *before, last = words
    return [(each.type, each.value) for each in complete.get_completions(list(before), last)]


@pytest.mark.parametrize("shell", [shell for shell in _SHELLS if shutil.which(shell)])
def test_shell(shell: str) -> None:
    path = f"{CLI.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [shell, "-c", _SHELLS[shell]],
        env=os.environ | {"PATH": path},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["standby", "status"], done.stderr


def test_commands_and_options() -> None:
    assert ("plain", "doctor") in _offered("do")
    assert _offered("key", "") == [("plain", name) for name in ("add", "list", "remove")]
    assert _offered("help", "key", "re") == [("plain", "remove")]
    assert _offered("log", "--fo") == [("plain", "--follow")]
    assert _offered("nonsense", "") == [] or ("plain", "status") in _offered("nonsense", "")


@pytest.mark.parametrize(
    "words",
    [["status"], ["restore"], ["restore", "/mnt/node"], ["copy"], ["copy", "/a"], ["takeover"]],
    ids=" ".join,
)
def test_places_are_paths(words: list[str]) -> None:
    assert _offered(*words, "/mn") == [("file", "/mn")]


def test_directories() -> None:
    assert [kind for kind, _ in _offered("status", "--lightning-dir", "")] == ["dir"]


def test_key_slots(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(bytes(32))
    create_backend(f"dir://{tmp_path}/backup?key-file={tmp_path}/key", None)
    assert _offered("key", "remove", f"{tmp_path}/backup", "k") == [("plain", "key-file")]
    assert _offered("key", "remove", f"{tmp_path}/none", "k") == []
    assert _offered("key", "remove", "socket:127.0.0.1:1", "k") == []
