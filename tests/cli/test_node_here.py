"""The URL of a backup may be left out: `--lightning-dir`, or the one node on the machine."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from cln_backup.backends import create_backend
from cln_backup.node import here
from cln_backup.node.settings import Settings, create_settings
from tests import programs
from tests.histories import append, build_database, payments, started_node

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

_HISTORY = [*started_node(), *payments(4, 20)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's home with one node, whose backup is encrypted."""
    home, url = tmp_path / "home", f"dir://{tmp_path}/backup?key-file={tmp_path}/key"
    (tmp_path / "key").write_bytes(os.urandom(32))
    create_backend(url, None)
    append(url, _HISTORY)
    directory = home / ".lightning" / "bitcoin"
    directory.mkdir(parents=True)
    (home / ".lightning" / "regtest").mkdir()  # a node without a backup
    build_database(directory / "lightningd.sqlite3", _HISTORY)
    create_settings(str(directory), Settings(url))
    return home


def _run(home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return programs.run(*arguments, env=os.environ | {"HOME": str(home)})


def _fields(home: Path, *arguments: object) -> dict[str, Any]:
    done = _run(home, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[0])
    return found


@pytest.mark.parametrize(
    ("command", "field", "value"),
    [
        ("status", "version", 19),
        ("verify", "version", 19),
        ("verify --checksums", "replayed", False),
        ("drill", "passed", True),
        ("log", "version", 1),
        ("key list", "keys", None),
        ("compact --force", "after", None),
    ],
)
@pytest.mark.parametrize("is_named", [False, True])
def test_url_left_out(
    command: str, field: str, value: object, is_named: bool, home: Path, tmp_path: Path
) -> None:
    directory = home / ".lightning" / "bitcoin"
    named = ["--lightning-dir", directory] if is_named else []
    done = _run(tmp_path if is_named else home, *command.split(), *named, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[0])
    assert value is None or found[field] == value
    assert field in found
    assert (f"Note: Using the node in {directory}" in done.stderr) is not is_named


def test_node_that_was_found_is_shown_with_its_state(home: Path) -> None:
    assert "drilled_at" in _fields(home, "status")
    assert "drilled_at" not in _fields(
        home, "status", "--key-file", home.parent / "key", home.parent / "backup"
    )


def test_url_left_out_before_another_argument(home: Path, tmp_path: Path) -> None:
    """`key remove [URL] NAME`, `copy [FROM] TO`."""
    _fields(home, "key", "add", "--new-key-file", tmp_path / "paper", "--name", "paper")
    assert _fields(home, "key", "remove", "paper") == {"removed": "paper"}
    assert _fields(home, "copy", tmp_path / "copy")["version_count"] == len(_HISTORY)
    keyed = f"dir://{tmp_path}/backup?key-file={tmp_path}/key"
    assert _fields(home, "copy", keyed, tmp_path / "other")["version_count"] == len(_HISTORY)


@pytest.mark.parametrize("arguments", [["key", "remove"], ["copy"], ["restore", "/nowhere"]])
def test_what_cannot_be_left_out(arguments: list[str], home: Path) -> None:
    done = _run(home, *arguments)
    assert done.returncode == 2
    assert "Missing argument" in done.stderr


def test_two_nodes_are_listed_and_none_is_taken(home: Path, tmp_path: Path) -> None:
    other = home / ".lightning" / "regtest"
    create_settings(str(other), Settings(f"dir://{tmp_path}/backup"))
    (home / ".lightning" / "same").symlink_to(other)  # the same one again
    done = _run(home, "status")
    assert (done.returncode, done.stdout) == (2, "")
    assert "2 nodes on this machine have a backup" in done.stderr
    for name in ("bitcoin", "regtest"):
        assert str(home / ".lightning" / name) in done.stderr


def test_no_node_at_all(tmp_path: Path) -> None:
    done = _run(tmp_path, "status")
    assert done.returncode == 2
    assert "Name the backup" in done.stderr


def test_places_of_a_node(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    assert here.PLACES[0] == "~/.lightning"
    assert str(home / ".lightning" / "bitcoin") in here.nodes_here()
    monkeypatch.setattr(here, "PLACES", (str(tmp_path / "none"), str(home / ".lightning")))
    assert here.nodes_here() == [str(home / ".lightning" / "bitcoin")]
