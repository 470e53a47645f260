from __future__ import annotations

import subprocess
import sys
from shlex import quote
from typing import TYPE_CHECKING

import pytest

from cln_backup.model.errors import NodeRunning, NotFound
from cln_backup.node import outside as node
from tests.operations.neighbours import holding, listening, locking

if TYPE_CHECKING:
    from pathlib import Path

_WAIT = "import sys; print('ready', flush=True); sys.stdin.read()"


def test_boot_is_named_and_the_same_all_the_time() -> None:
    assert node.boot_id()
    assert node.boot_id() == node.boot_id()


def test_database_is_the_usual_one(tmp_path: Path) -> None:
    assert node.database_path(str(tmp_path), None) == str(tmp_path / "lightningd.sqlite3")
    assert node.find_database(str(tmp_path), None) is None
    (tmp_path / "lightningd.sqlite3").write_bytes(b"x")
    assert node.find_database(str(tmp_path), None) == str(tmp_path / "lightningd.sqlite3")


@pytest.mark.parametrize(
    ("wallet", "path"),
    [
        ("other.sqlite3", "{directory}/other.sqlite3"),
        ("/some/where.sqlite3", "/some/where.sqlite3"),
        ("sqlite3:///some/where.sqlite3", "/some/where.sqlite3"),
        ("sqlite3:///some/where.sqlite3:/copy.sqlite3", "/some/where.sqlite3"),
    ],
)
def test_wallet_is_written_as_for_lightningd(wallet: str, path: str, tmp_path: Path) -> None:
    assert node.database_path(str(tmp_path), wallet) == path.format(directory=tmp_path)


def test_link_to_the_database_is_followed_and_a_broken_one_is_not(tmp_path: Path) -> None:
    link = tmp_path / "lightningd.sqlite3"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotFound):
        node.find_database(str(tmp_path), None)
    (tmp_path / "elsewhere").write_bytes(b"x")
    assert node.find_database(str(tmp_path), None) == str(link)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "bitcoin"
    directory.mkdir()
    return directory


def test_nothing_runs_on_an_empty_directory(directory: Path) -> None:
    node.require_stopped(str(directory), None)
    assert list(directory.iterdir()) == []


def test_pid_file_without_a_lock_is_an_old_one(directory: Path) -> None:
    (directory.parent / "lightningd-bitcoin.pid").write_text("1\n")
    node.require_stopped(str(directory), None)


def test_pid_file_of_another_network_says_nothing(directory: Path) -> None:
    with locking(directory.parent / "lightningd-regtest.pid"):
        node.require_stopped(str(directory), None)


def test_lock_is_looked_at_and_not_taken(directory: Path) -> None:
    pid_file = directory.parent / "lightningd-bitcoin.pid"
    with locking(pid_file):
        for _ in range(2):
            with pytest.raises(NodeRunning):
                node.require_stopped(str(directory), None)
    with locking(pid_file):  # no other process has it
        pass


def test_relative_directory_and_a_link_to_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory.parent / "link").symlink_to(directory)
    monkeypatch.chdir(directory)
    with listening(directory / "lightning-rpc"):
        for name in (".", "../bitcoin", str(directory.parent / "link")):
            with pytest.raises(NodeRunning):
                node.require_stopped(name, None)
    with locking(directory.parent / "lightningd-bitcoin.pid"):
        for name in (".", str(directory.parent / "link")):
            with pytest.raises(NodeRunning):
                node.require_stopped(name, None)


def test_directory_with_a_path_longer_than_that_of_a_socket(directory: Path) -> None:
    long = directory / ("d" * 120)
    long.mkdir()
    with listening(directory / "lightning-rpc"):
        (directory / "lightning-rpc").rename(long / "lightning-rpc")
        with pytest.raises(NodeRunning, match="it answers"):
            node.require_stopped(str(long), None)
    node.require_stopped(str(long), None)  # a socket that a killed node left


def test_process_that_has_the_database_open(directory: Path) -> None:
    database = directory / "lightningd.sqlite3"
    with holding(database) as process, pytest.raises(NodeRunning, match=str(process.pid)):
        node.require_stopped(str(directory), str(database))
    node.require_stopped(str(directory), str(database))


def test_plugins_that_are_left() -> None:
    """A process plays lightningd; its children are plugins, and one of them asks."""
    code = (
        "import os, subprocess, sys\n"
        "from cln_backup.node.outside import other_plugins_live\n"
        "plugin, pipe = [sys.executable, '-c', sys.argv[1]], subprocess.PIPE\n"
        "ours, other = (subprocess.Popen(plugin, stdin=pipe, stdout=pipe) for _ in 'ab')\n"
        "for started in (ours, other): started.stdout.readline()\n"
        "print(other_plugins_live(os.getpid(), besides=ours.pid))\n"
        "print(other_plugins_live(ours.pid, besides=0))\n"
        "other.communicate()\n"
        "print(other_plugins_live(os.getpid(), besides=ours.pid))\n"
        "ours.communicate()\n"
    )
    lightningd = [sys.executable, "-c", code, _WAIT]
    said = subprocess.run(lightningd, check=True, capture_output=True, text=True)
    assert said.stdout.split() == ["True", "False", "False"]


def test_zombie_is_no_plugin_any_more() -> None:
    code = (
        "import os\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(0)\n"
        "os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)\n"
        "from cln_backup.node.outside import other_plugins_live\n"
        "print(other_plugins_live(os.getpid(), besides=0))\n"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout == "False\n"


def test_lightningd_is_found_through_a_wrapper(tmp_path: Path) -> None:
    code = "from cln_backup.node.outside import lightningd_above; print(lightningd_above())"
    lightningd = tmp_path / "lightningd"
    lightningd.symlink_to("/bin/sh")
    wrapper = f"{quote(sys.executable)} -c {quote(code)}; true"
    script = f"echo $$; /bin/sh -c {quote(wrapper)}; true"
    said = subprocess.run([lightningd, "-c", script], check=True, capture_output=True, text=True)
    shell, above = said.stdout.split()
    assert above == shell
