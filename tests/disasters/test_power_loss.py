"""The machine loses power, SQLite's journal is back, and the node comes back by itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from cln_backup.node.pid_file import pid_file_in_use
from simulator.settings import Exit
from tests.disasters.power_loss import LAST_CALL, ROUTER, copies, lose_power, machine_was_restarted
from tests.histories import database
from tests.plugin.home import PLUGIN, Home
from tests.socket.serving import server_process
from tests.waiting import WAIT_S, wait_for_process_in, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_VERSION = LAST_CALL - 1
_LOST = "lost its last changes with the power or the disk"
_ROLLED = f"backup.rollforward.log: 20.*Rolled .* forward from version .* to {_VERSION}"


def _until_up(home: Home, *more: str) -> int:
    """Starts the node again and again, at once, as a supervisor does; returns how often."""
    deadline_s = time.monotonic() + WAIT_S
    starts = 0
    while True:
        starts += 1
        home.run(*ROUTER, "--until", "70", *more, code=None)
        if json.loads(home.report.read_text())["exit_code"] == 0:
            return starts
        code = json.loads(home.report.read_text())["exit_code"]
        assert code in (Exit.REFUSED, Exit.PID_FILE), home.stderr
        assert time.monotonic() < deadline_s, home.stderr


def _log_of_the_work(home: Home) -> str:
    path = home.directory / "backup.rollforward.log"
    return path.read_text() if path.exists() else ""


def _wait_for(home: Home, text: str) -> None:
    wait_until(lambda: text in _log_of_the_work(home), lambda: _log_of_the_work(home))


@pytest.fixture
def home(kind: str, tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path, kind.partition("+")[0])
    if kind != "socket":
        home.init()
        yield home
        return
    home.url = f"file://{tmp_path}/served"
    home.cli("init", home.url)
    with server_process(home.url) as server:
        home.url = server.url
        home.cli("init", "--lightning-dir", str(home.directory), home.url)
        yield home


@pytest.mark.parametrize(("kind", "missing"), [("dir", 2), ("dir-encrypted", 1), ("socket", 2)])
def test_node_comes_back_by_itself(home: Home, missing: int) -> None:
    lose_power(home, missing)
    dropped = home.dropped()
    assert _until_up(home) == 2, "the second start waits for the work"
    log = home.log()
    assert f"is at version {_VERSION - missing}, the backup" in log
    assert "Versions match up" in log.partition(_LOST)[2]
    assert f"forward from version {_VERSION - missing} to {_VERSION}" in log
    assert home.dropped() == dropped
    (kept,) = copies(home)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    home.require_same(home.database)
    left = {path.name for path in home.directory.glob("backup.*")}
    assert left - {"backup.key"} == {"backup.lock", "backup.state"}
    home.run(*ROUTER, "--until", "75")
    assert home.log().count(_LOST) == log.count(_LOST)


@pytest.mark.parametrize("kind", ["dir"])
def test_storage_that_is_unknown(home: Home) -> None:
    """A crash between an answer and its commit looks the same, and is repaired the same way."""
    home.run(*ROUTER, "--crash", f"after-answer@{LAST_CALL}", code=None)
    (home.directory / "backup.state").unlink()
    assert _until_up(home) == 2
    home.require_same(home.database)


@pytest.mark.parametrize("kind", ["dir"])
def test_node_end_takes_the_process_with_it(home: Home) -> None:
    """As the end of a container's first process does: the next start does the work."""
    lose_power(home)
    node = home.start(*ROUTER)
    child = _the_process(home)
    os.kill(child, signal.SIGSTOP)
    node.communicate(timeout=WAIT_S)
    os.kill(child, signal.SIGKILL)
    assert _log_of_the_work(home) == ""
    assert (home.directory / "backup.rollforward").exists()
    # Nothing else is touched by those who only ask the plugin for its options.
    found = home.database.read_bytes()
    _ask_for_help(home)
    assert home.database.read_bytes() == found
    assert _until_up(home) == 1
    home.require_same(home.database)


def _the_process(home: Home) -> int:
    """The process that waits for the node's end, as soon as it is there."""
    return wait_for_process_in(home.directory, "rollforward_process")


def _ask_for_help(home: Home) -> None:
    """Starts the plugin as `lightningd --help` does."""
    script = (
        "import subprocess, sys; p = subprocess.Popen(sys.argv[1], stdin=-1, stdout=-1); "
        'p.stdin.write(b\'{"jsonrpc":"2.0","id":1,"method":"getmanifest","params":{}}'
        "\\n\\n'); p.stdin.flush(); print(p.stdout.read(100)); p.stdin.close(); p.wait()"
    )
    command = [sys.executable, "-c", script, str(PLUGIN), "--help"]
    done = subprocess.run(command, cwd=home.directory, check=True, capture_output=True)
    assert b"result" in done.stdout


@pytest.mark.parametrize("kind", ["file"])
def test_second_node_by_mistake_touches_nothing(home: Home) -> None:
    """While a node runs, another start finds a request that nobody has removed."""
    home.run(*ROUTER, "--until", "60")
    node = home.start(*ROUTER, "--until", "65", "--hold")
    home.wait_for_version(65)
    found = home.database.read_bytes()
    pid = int((home.base / "lightningd-regtest.pid").read_text())
    marker = {"database": str(home.database), "pid_file": pid_file_in_use(pid)}
    assert marker["pid_file"] == str(home.base / "lightningd-regtest.pid")
    (home.directory / "backup.rollforward").write_text(json.dumps(marker))
    home.run(*ROUTER, code=Exit.PID_FILE)
    _wait_for(home, "Not rolled forward: lightningd is running")
    assert home.database.read_bytes() == found
    assert copies(home) == []
    node.kill()
    node.communicate(timeout=WAIT_S)


@pytest.mark.parametrize("kind", ["dir"])
def test_database_that_is_not_the_backups_is_refused_once(home: Home) -> None:
    """The process says why, and each start after it; it does not try again and again."""
    lose_power(home)
    with database(home.database) as connection:
        connection.execute("UPDATE vars SET intval = 77 WHERE name = 'next_pay_index'")
        connection.execute("INSERT INTO vars (name, intval) VALUES ('another', 1)")
    home.run(*ROUTER, code=Exit.REFUSED)
    _wait_for(home, "cannot be rolled forward to version")
    for _ in range(2):
        home.run(*ROUTER, code=Exit.REFUSED)
        assert "its content is not the backup's (vars: " in home.stderr
        assert "backup-cli restore" in home.stderr
    assert _log_of_the_work(home).count("\n") == 1
    for path in home.directory.glob("lightningd.sqlite3*"):
        path.unlink() if path.is_file() else shutil.rmtree(path)
    home.cli("restore", home.url, str(home.database))
    home.run(*ROUTER, "--until", "70")
    assert not (home.directory / "backup.rollforward").exists()


@pytest.mark.parametrize("kind", ["dir"])
def test_switched_off(home: Home) -> None:
    lose_power(home)
    home.set_options(on_power_loss="halt")
    home.run(*ROUTER, code=Exit.REFUSED)
    assert _LOST in home.stderr
    assert copies(home) == []
    said = home.cli("rollforward", "--lightning-dir", str(home.directory))
    assert f"from data version {_VERSION - 1} to {_VERSION}: 1 change." in said
    home.run(*ROUTER, "--until", "70")
    home.require_same(home.database)


@pytest.mark.parametrize("kind", ["file"])
def test_power_is_lost_again_and_again(home: Home) -> None:
    lose_power(home, missing=2)
    assert _until_up(home) == 2
    machine_was_restarted(home)
    home.run(*ROUTER, "--until", "75")
    home.run(*ROUTER, "--crash", "in-commit@80:step=delete", code=None)
    machine_was_restarted(home)
    assert _until_up(home, "--until", "90") == 2
    assert [path.name[-2:] for path in copies(home)] == ["79"]
    home.require_same(home.database)
