"""Help, and what a mistyped command line says."""

from __future__ import annotations

import pytest

from cln_backup.cli.commands import cli
from tests import programs
from tests.terminals import shown_on


def _help(*arguments: str) -> str:
    done = programs.run(*arguments)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.mark.parametrize("names", [[], ["restore"], ["key"], ["key", "add"]], ids=" ".join)
def test_three_ways_to_the_same_help(names: list[str]) -> None:
    shown = _help(*names, "--help")
    assert shown.startswith(f"Usage: {' '.join(['backup-cli', *names])} ")
    assert "-h, --help" in shown
    assert _help(*names, "-h") == shown
    assert _help("help", *names) == shown


def test_no_command_is_answered_with_the_help() -> None:
    done = programs.run()
    assert done.returncode == 2
    assert (done.stdout + done.stderr).strip() == _help("-h").strip()


def test_help_lists_each_command_once_with_a_whole_sentence() -> None:
    lines = [line.split() for line in _help("-h").splitlines() if line.startswith("  ")]
    first = [words[0] for words in lines if words]
    assert {name: first.count(name) for name in cli.commands} == dict.fromkeys(cli.commands, 1)
    assert "..." not in _help("-h").partition("\n")[2]


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        (["statsu"], "status"),
        (["key", "ad"], "add"),
        (["help", "restroe"], "restore"),
        (["status", "--jsno"], "--json"),
        (["log", "--folow"], "--follow"),
    ],
    ids=" ".join,
)
def test_mistyped_words_are_answered_with_the_nearest(mistyped: list[str], meant: str) -> None:
    done = programs.run(*mistyped)
    assert done.returncode == 2
    assert "Did you mean" in done.stderr
    assert meant in done.stderr.partition("Did you mean")[2]


def test_words_like_nothing_are_answered_without_a_guess() -> None:
    done = programs.run("xyzzy")
    assert done.returncode == 2
    assert "No such command 'xyzzy'.\n" in done.stderr


def test_command_without_commands_of_its_own() -> None:
    done = programs.run("help", "status", "now")
    assert done.returncode == 2
    assert "backup-cli status has no commands of its own" in done.stderr


@pytest.mark.parametrize("columns", [60, 80])
def test_help_is_as_wide_as_the_terminal(columns: int) -> None:
    longest = max(map(len, shown_on(columns, "-h").splitlines()))
    assert columns * 3 // 4 < longest <= columns
