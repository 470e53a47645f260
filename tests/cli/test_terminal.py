"""Tables on terminals of several widths, and their colours."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_writer
from cln_backup.cli.terminal import wrapped
from cln_backup.node.settings import Alarm, Settings, State, create_settings, write_state
from tests import programs
from tests.histories import add_all, started_node
from tests.terminals import shown_on

if TYPE_CHECKING:
    from pathlib import Path

_NODE = "02" + "ab" * 32
_TEXT = "The change for data version 7 cannot be replayed: no such table: peers. " * 3


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A node's directory with an alarm, and a backup with a long URL."""
    url = f"dir://{tmp_path}/{'a-long-name-of-a-disk/' * 3}backup?keep=2&keep-days=7"
    directory = tmp_path / "regtest"
    for path in (directory, tmp_path / ("a-long-name-of-a-disk/" * 3)):
        path.mkdir(parents=True)
    create_backend(url, None)
    with open_writer(url) as writer:
        writer.claim(_NODE)
        add_all(writer, started_node())
    create_settings(str(directory), Settings(url))
    state = State(alarm=Alarm("replay", _TEXT, 1.5), drilled_at=2.5, drill_passed=True)
    write_state(str(directory), state)
    return directory


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_status_is_wrapped_beside_its_names(columns: int, directory: Path) -> None:
    shown = shown_on(columns, "status", "--lightning-dir", directory, NO_COLOR="1")
    assert "\x1b" not in shown
    lines = shown.splitlines()
    assert lines[0].startswith("ALARM ")
    assert max(map(len, lines)) <= min(columns, 120)
    assert max(map(len, lines)) > min(columns, 120) - 20
    values: dict[str, list[str]] = {}
    for line in lines:
        values.setdefault(line[:14].strip() or list(values)[-1], []).append(line[14:])
    url = json.loads((directory / "backup.lock").read_text())["backend_url"]
    assert "".join(values["backup"]) == url
    assert "".join(values["node"]) == _NODE
    assert len(values["node"]) == (2 if columns == 60 else 1)
    assert " ".join(values["ALARM"]).endswith(_TEXT.strip())


def test_colours_are_for_terminals_that_want_them(directory: Path) -> None:
    status = ("status", "--lightning-dir", directory)
    shown = shown_on(80, *status, TERM="xterm")
    assert "\x1b[31m" in shown.partition("data version")[0]
    assert "\x1b[32mlast drill    passed" in shown
    assert "\x1b" not in shown_on(80, *status, TERM="dumb")
    piped = programs.run(*status).stdout
    assert "\x1b" not in piped
    assert _TEXT.strip() in piped


def test_wrapping() -> None:
    url = "dir:///mnt/disk/node?key-file=/etc/key&keep=2"
    assert list(wrapped(url, None)) == [url]
    assert list(wrapped(f"{url} is here", 30)) == [
        "dir:///mnt/disk/node?key-file=",
        "/etc/key&keep=2 is here",
    ]
    assert list(wrapped("ab" * 33, 64)) == ["ab" * 16 + "a", "b" + "ab" * 16]
    assert list(wrapped("one two three", 7)) == ["one two", "three"]
    assert list(wrapped("one two", 7)) == ["one two"]
