"""Wrong input, and environments in which something is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import pytest

from cln_backup.backends import create_backend
from cln_backup.cli.commands import cli
from cln_backup.model import errors
from tests import programs
from tests.histories import append, build_database, payments, started_node
from tests.programs import CLI

if TYPE_CHECKING:
    from collections.abc import Iterator

_HISTORY = [*started_node(), *payments(4, 20)]
_WORDS = "abandon " * 11 + "about"


class Ended(NamedTuple):
    """A process that has ended."""

    code: int
    out: str
    err: str


def run(*arguments: object, text: str = "", cwd: Path | None = None) -> Ended:
    """Runs a command in a session without a terminal."""
    ended = programs.run(*arguments, input=text, cwd=cwd, start_new_session=True)
    assert "Traceback" not in ended.stderr
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def _shell(script: str, *arguments: object) -> Ended:
    ended = subprocess.run(
        ["/bin/sh", "-c", script, str(CLI), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


class Place(NamedTuple):
    """A stopped node, and two backups of it."""

    node: Path
    file: Path
    encrypted: Path

    def contents(self) -> dict[str, bytes]:
        return {
            str(path): path.read_bytes() if path.is_file() else b""
            for path in self.node.parent.rglob("*")
        }


@pytest.fixture
def place(tmp_path: Path) -> Place:
    node = tmp_path / "lightning" / "regtest"
    node.mkdir(parents=True)
    build_database(node / "lightningd.sqlite3", _HISTORY)
    (node / "hsm_secret").write_bytes(bytes(32) + _WORDS.encode())
    file = tmp_path / "node.bkp"
    create_backend(f"file://{file}", None)
    append(f"file://{file}", _HISTORY)
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    create_backend(f"dir://{tmp_path}/encrypted?key-file={key}", None)
    append(f"dir://{tmp_path}/encrypted?key-file={key}", _HISTORY)
    return Place(node, file, tmp_path / "encrypted")


# empty arguments


def _commands(
    group: click.Group = cli, *before: str
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, *before, name)
        else:
            yield (*before, name), command


def _takes_text(parameter: click.Parameter) -> bool:
    flag = isinstance(parameter, click.Option) and (parameter.is_flag or parameter.is_eager)
    return not flag


EMPTY = [
    (*names, parameter.name)
    for names, command in _commands()
    for parameter in command.params
    if _takes_text(parameter)
]


@pytest.mark.parametrize("names", EMPTY, ids=" ".join)
def test_empty_argument_is_a_wrong_command_line(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `backup-cli init "$UNSET"`, which made a backup of the working directory."""
    monkeypatch.chdir(tmp_path)
    *path, empty = names
    command = dict(_commands())[tuple(path)]
    arguments = [
        "" if parameter.name == empty else "something"
        for parameter in command.params
        if isinstance(parameter, click.Argument)
    ]
    options = [
        text
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.name == empty
        for text in (parameter.opts[0], "")
    ]
    with pytest.raises(click.UsageError, match=r"is empty\. If it came from a shell variable"):
        cli.main([*path, *options, *arguments], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []


def test_empty_argument_ends_with_the_code_of_a_wrong_command_line(tmp_path: Path) -> None:
    ended = run("init", "", cwd=tmp_path)
    assert ended.code == 2
    assert "is empty" in ended.err
    assert list(tmp_path.iterdir()) == []


# output that is not read


def test_finished_restore_is_not_said_to_have_failed_by_a_full_disk(place: Place) -> None:
    restored = place.node.parent / "restored"
    ended = _shell('exec "$0" restore "$1" "$2" > /dev/full', place.file, restored)
    assert ended.code == errors.OutputLost.exit_code
    assert "Cannot write to standard output: No space left on device" in ended.err
    assert f"Restored {restored} at data version 19" in ended.err
    assert "Traceback" not in ended.err
    assert restored.exists()


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", ">&- 2>&- <&-", "2>&-"])
def test_restore_with_closed_streams_is_done(closed: str, place: Place) -> None:
    restored = place.node.parent / "restored"
    ended = _shell(f'exec "$0" restore "$1" "$2" {closed}', place.file, restored)
    assert (ended.code, ended.err) == (0, "")
    assert restored.stat().st_size % 4096 == 0, "nothing was printed into the database"


@pytest.mark.parametrize("command", ["status", "log", "verify"])
def test_reader_that_goes_away_is_no_error(command: str, place: Place) -> None:
    script = '{ "$0" "$1" "$2"; echo "ended with $?" >&2; } | true'
    assert _shell(script, command, place.file).err == "ended with 0\n"


def test_error_keeps_its_code_where_it_cannot_be_told(place: Place) -> None:
    missing = place.file.with_name("none")
    for more in ("", "--json"):
        script = f'"$0" status "$1" {more} > /dev/full 2> /dev/full'
        assert _shell(script, missing).code == errors.NotFound.exit_code


def test_help_into_a_full_disk_is_no_traceback() -> None:
    ended = _shell('"$0" --help > /dev/full')
    assert ended.code == errors.OutputLost.exit_code
    assert "Traceback" not in ended.err


# what is missing around a command


def test_working_directory_that_was_removed(place: Place) -> None:
    script = 'mkdir "$1" && cd "$1" && rmdir "$1" && exec "$0" status node.bkp'
    ended = _shell(script, place.node / "gone")
    assert ended.code == errors.NotFound.exit_code
    assert ended.err.startswith("Error: The current working directory was removed")
    script = 'mkdir "$1" && cd "$1" && rmdir "$1" && exec "$0" status "$2"'
    assert _shell(script, place.node / "gone", place.file).code == 0, "an absolute path is enough"


@pytest.mark.parametrize("module", ["cli/presentation", "backends/file/reader"])
def test_module_that_is_missing_since_an_upgrade_is_no_fault_of_the_program(
    module: str, place: Place
) -> None:
    package = Path(errors.__file__).parents[1]
    shutil.copytree(package, place.node / "cln_backup", ignore=shutil.ignore_patterns("*.pyc"))
    (place.node / "cln_backup" / f"{module}.py").unlink()
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            "from cln_backup.cli.entry import backup_cli; backup_cli()",
            "status",
            place.file,
        ],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(place.node)},
    )
    assert ended.returncode == errors.BrokenInstallation.exit_code
    assert "installation of cln-backup is incomplete, or changed while it ran" in ended.stderr
    assert "Traceback" not in ended.stderr


# questions


@pytest.mark.parametrize("stream", ["</dev/null", "<&-"])
def test_words_that_nobody_can_be_asked_for(stream: str, place: Place) -> None:
    ended = _shell(f'exec "$0" status --words "$1" {stream}', place.encrypted)
    assert ended.code == errors.Locked.exit_code
    assert ended.err.startswith("Error: Cannot ask for this: Words of the node's secret")
    assert len(ended.err.splitlines()) == 1


def test_words_from_a_pipe_are_taken(place: Place) -> None:
    encrypted = place.encrypted
    hsm = place.node / "hsm_secret"
    key = encrypted.with_name("key")
    assert run("key", "add", "--key-file", key, "--new-hsm-secret", hsm, encrypted).code == 0
    ended = run("status", "--words", encrypted, text=f"{_WORDS}\n\n")
    assert (ended.code, ended.err) == (0, "")


def test_module_that_is_missing_to_the_plugin_is_no_fault_of_the_program() -> None:
    from cln_backup.plugin.faults import fault

    said = fault(ModuleNotFoundError("No module named 'cln_backup.gone'"))
    assert said.startswith("The installation of cln-backup is incomplete, or changed")
    assert "has a fault" not in said
    assert fault(ValueError("secret")).startswith("cln-backup has a fault (ValueError in ")
