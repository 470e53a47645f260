"""The documents describe every command, option, exit code and field."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from cln_backup.backends import SCHEMES
from cln_backup.cli.commands import cli
from cln_backup.model import errors
from cln_backup.model.errors import BackupError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def _errors() -> list[type[BackupError]]:
    found = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    return [kind for kind in found if issubclass(kind, BackupError)]


def _section(command: str) -> str:
    """The text under a command's heading, up to the next heading of its rank."""
    found = re.search(
        rf"^### `backup-cli {command}`$(.*?)(?=^##+ )", DOCUMENT, re.MULTILINE | re.DOTALL
    )
    assert found is not None, f"docs/cli.md has no section about {command}"
    return found[1]


UNLOCKING = {"--key-file", "--hsm-secret", "--words", "--passphrase", "--passphrase-file"}
"""Options of every command with a URL; they have a section of their own."""


def _commands() -> Iterator[tuple[str, click.Command]]:
    for name, command in cli.commands.items():
        yield name, command
        if isinstance(command, click.Group):
            for part in command.commands.values():
                yield name, part


def _options() -> Iterator[tuple[str, str]]:
    for name, command in _commands():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                for option in (*parameter.opts, *parameter.secondary_opts):
                    if option not in UNLOCKING:
                        yield name, option


def test_options_that_unlock_are_documented() -> None:
    heading = "### Encryption and options of a directory"
    section = DOCUMENT.partition(heading)[2].partition("\n### ")[0]
    for option in UNLOCKING:
        assert f"| `{option}" in section


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_is_documented_as_it_is_typed(command: str) -> None:
    assert f"backup-cli {command}" in _section(command)
    assert re.search(rf"^\| \[?`{command}`", DOCUMENT, re.MULTILINE), "not in the list of commands"


@pytest.mark.parametrize(("command", "option"), sorted(set(_options())))
def test_every_option_is_documented(command: str, option: str) -> None:
    assert option in _section(command)


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_argument_is_documented(command: str) -> None:
    for parameter in cli.commands[command].params:
        if isinstance(parameter, click.Argument):
            shown = parameter.metavar or parameter.human_readable_name
            for name in re.findall(r"\w+", shown):
                assert name in _section(command)


def test_no_option_is_documented_that_is_not_there() -> None:
    for command in cli.commands:
        there = {option for name, option in _options() if name == command}
        said = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", _section(command)))
        assert said <= there | {"--help"}, command


def test_no_command_is_documented_that_is_not_there() -> None:
    said = set(re.findall(r"^### `backup-cli ([\w-]+)`$", DOCUMENT, re.MULTILINE))
    assert said == set(cli.commands)


@pytest.mark.parametrize("kind", _errors(), ids=lambda kind: kind.__name__)
def test_every_exit_code_is_documented(kind: type[BackupError]) -> None:
    row = rf"^\| *{kind.exit_code} *\| *`{kind.__name__}` *\|"
    assert re.search(row, DOCUMENT, re.MULTILINE), f"{kind.exit_code} {kind.__name__}"


def test_no_exit_code_is_documented_that_is_not_there() -> None:
    said = set(re.findall(r"^\| *(\d+) *\| *`(\w+)` *\|", DOCUMENT, re.MULTILINE))
    assert said == {(str(kind.exit_code), kind.__name__) for kind in _errors()}


def test_every_scheme_is_documented() -> None:
    urls = DOCUMENT.partition("## URLs")[2].partition("\n## ")[0]
    for scheme in SCHEMES:
        assert f"`{scheme}:" in urls


@pytest.mark.parametrize("command", ["init", "snapshot", "restore", "status", "verify"])
def test_every_field_of_the_json_is_documented(command: str) -> None:
    from cln_backup.operations.history import Status
    from cln_backup.operations.initialize import Appended, Initialized
    from cln_backup.operations.restore import Restored
    from cln_backup.operations.verify import Verified

    fields = {
        "init": (*Initialized._fields, "keys"),
        "snapshot": Appended._fields,
        "restore": Restored._fields,
        "status": (*Status._fields, "notices"),
        "verify": (*Verified._fields, "good", "notices"),
    }[command]
    for name in fields:
        assert f"`{name}`" in _section(command), name


@pytest.mark.parametrize(
    "phrase",
    ["Found an existing database", "Successfully written initial snapshot",
     "Initialized backup backend"],
)  # fmt: skip
def test_phrases_that_others_go_by_are_documented(phrase: str) -> None:
    assert phrase in DOCUMENT
    commands = ROOT / "src" / "cln_backup" / "cli" / "commands.py"
    assert phrase in commands.read_text(encoding="utf-8")
