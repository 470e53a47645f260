"""Every object that a command prints with `--json` is as its schema and docs/cli.md say."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import click
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from cln_backup.cli.commands import cli
from cln_backup.cli.schema import ANSWERS, schema_of
from tests import programs
from tests.docs import scenes
from tests.documents import ROOT
from tests.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.docs.sandbox import Sandbox

_WHOLE = "--node ~/.lightning/bitcoin /mnt/backup/node"
_DIR = "--lightning-dir ~/.lightning/bitcoin"
_RUN: list[tuple[Callable[[Sandbox], None], tuple[str, ...]]] = [
    (scenes.bare, (f"init --encrypt {_DIR} /mnt/backup/node",)),
    (scenes.new, ("init /mnt/backup/empty", "status /mnt/backup/empty", "log /mnt/backup/empty")),
    (scenes.ahead, (f"snapshot {_DIR}",)),
    (scenes.older, (f"rollforward {_DIR}",)),
    (scenes.migrating, (f"undo-migration {_DIR}",)),
    (scenes.protected, (
        "restore --hsm-secret ~/.lightning/bitcoin/hsm_secret /mnt/backup/node /tmp/a.sqlite3",
        f"drill {_DIR}",
        f"status {_DIR}",
        "status",
        "status /mnt/backup/node",
        f"key add {_DIR} --new-key-file /tmp/paper --name paper",
        "key list",
        "key remove paper",
        "copy /tmp/copy",
        f"doctor --write-test {_DIR}",
        "token /tmp/token",
    )),
    (scenes.whole_lost, (
        f"restore --words --dry-run {_WHOLE}",
        f"restore --words --old-node-is-off --original {_WHOLE}",
    )),
    (scenes.plain, (
        "log",
        "verify --checksums",
        "verify --against ~/.lightning/bitcoin",
        "compact",
        "compact",
    )),
    (scenes.damaged, ("verify file:///mnt/backup/bad.bkp", "log /mnt/backup/bad.bkp")),
    (scenes.served, ("status socket:127.0.0.1:8700", "takeover socket:127.0.0.1:8700")),
    (scenes.waiting, (
        "standby socket:127.0.0.1:8700 ~/.lightning/bitcoin",
        "standby --promote socket:127.0.0.1:8700 ~/.lightning/bitcoin",
    )),
]  # fmt: skip
"""The state of a machine, and commands that are run on it in this order, each with `--json`."""

_FAILURES = {
    "init": "init --lightning-dir /tmp /none/node",
    "snapshot": "snapshot --lightning-dir /tmp",
    "restore": "restore /none/node /tmp/x.sqlite3",
    "status": "status /none/node",
    "log": "log /none/node",
    "verify": "verify /none/node",
    "drill": "drill --lightning-dir /tmp",
    "compact": "compact /none/node",
    "copy": "copy /none/node /tmp/copy",
    "key list": "key list nonsense:",
    "key add": "key add --new-key-file /tmp/new /none/node",
    "key remove": "key remove /none/node paper",
    "rollforward": "rollforward --lightning-dir /tmp",
    "undo-migration": "undo-migration --lightning-dir /tmp",
    "token": "token /none/token",
    "takeover": "takeover /none/node",
    "standby": "standby /none/node /tmp/standby",
}


def _of(typed: str) -> str:
    first, second, *_ = [*typed.split(), ""]
    return f"{first} {second}" if first == "key" else first


def _strictly(schema: dict[str, Any]) -> Draft202012Validator:
    """Refuses fields that the schema does not name."""
    for part in schema["$defs"].values():
        part["additionalProperties"] = False
    return Draft202012Validator(schema)


_VALIDATORS = {command: _strictly(schema_of(command)) for command in ANSWERS}


def _objects(said: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def _check(command: str, said: str, which: str) -> None:
    found = _objects(said)
    assert found, said
    for each in found:
        _VALIDATORS[command].validate(each)
        assert ("error" in each) == (which == "Failure"), each


@pytest.mark.parametrize(("scene", "commands"), _RUN, ids=[run[0].__name__ for run in _RUN])
def test_answers(
    scene: Callable[[Sandbox], None],
    commands: tuple[str, ...],
    template: Path,
    machine: Sandbox,
) -> None:
    machine.place(template)
    scene(machine)
    for typed in commands:
        if typed.startswith("standby socket"):
            _check("standby", _first_line_of_a_standby(machine, typed), "")
            continue
        code, said = machine.run(f"backup-cli {typed} --json")
        if typed.startswith("doctor"):
            assert code in (0, 30, 31), said
            code = 0
        elif typed == "log /mnt/backup/empty":
            assert (code, _objects(said)) == (0, []), said
            continue
        fails = "bad.bkp" in typed or typed == "status /mnt/backup/node"
        assert (code != 0) == fails, said
        lines = said if not (fails and "log" in typed) else said.splitlines()[-1]
        _check(_of(typed), lines, "Failure" if fails else "")


def _first_line_of_a_standby(machine: Sandbox, typed: str) -> str:
    words = machine.here(typed).replace("~", str(machine.home)).split()
    with programs.start(
        "backup-cli", *words, "--json", stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            return str(wait_for(process.stdout.readline))
        finally:
            process.terminate()


@pytest.mark.parametrize("command", sorted(_FAILURES))
def test_failures(command: str, machine: Sandbox) -> None:
    (machine.root / "tmp").mkdir(parents=True)
    machine.home.mkdir(parents=True)
    code, said = machine.run(f"backup-cli {_FAILURES[command]} --json")
    assert code not in (0, 2), said
    _check(command, said, "Failure")


def _commands_with_json() -> Iterator[str]:
    for name, command in cli.commands.items():
        parts = command.commands if isinstance(command, click.Group) else {"": command}
        for part, inner in parts.items():
            if any("--json" in parameter.opts for parameter in inner.params):
                yield f"{name} {part}".rstrip()


def test_every_command_with_json_has_a_schema_and_is_run() -> None:
    assert set(_commands_with_json()) == set(ANSWERS)
    run = {_of(typed) for _, commands in _RUN for typed in commands}
    assert run == set(ANSWERS)
    assert set(_FAILURES) == set(ANSWERS) - {"doctor"}  # which has findings instead


@pytest.mark.parametrize("command", ["status", "key list"])
def test_schema_is_shown(command: str) -> None:
    done = programs.run("schema", *command.split())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(schema_of(command)))


def test_schemas_are_valid() -> None:
    for command in ANSWERS:
        Draft202012Validator.check_schema(schema_of(command))


@pytest.mark.parametrize("words", [["server"], ["key"], ["nonsense"], []], ids=str)
def test_what_has_no_schema(words: list[str]) -> None:
    done = programs.run("schema", *words)
    assert done.returncode == 2
    assert "Error: " in done.stderr


@pytest.mark.parametrize("command", sorted(ANSWERS))
def test_every_field_is_documented(command: str) -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    heading = re.escape(f"### `backup-cli {command.split(maxsplit=1)[0]}`")
    found = re.search(rf"^{heading}$(.*?)(?=^##+ )", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    for answer in ANSWERS[command]:
        for name in answer.__struct_fields__:
            assert re.search(rf"`(\w+\.)?{name}`", found[1]), name
