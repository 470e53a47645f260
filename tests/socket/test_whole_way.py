"""The whole way: simulated node, plugin, server, file, restore; whatever is killed on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import captured, programs
from tests.plugin.home import CAPTURES, ROOT, Home, processes_of
from tests.soak import SOAK
from tests.socket.serving import server_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import Popen

    from tests.socket.serving import ServerProcess

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))
_KILLS = (
    "before-hook@17",
    "in-plugin@60",
    "after-answer@61",
    "in-commit@140",
    "in-plugin@300:bytes=40",
    "after-answer@420",
)

_MOST_KILLS = 12


class RemoteHome(Home):
    """A node whose backup is on a server."""

    def __init__(self, base: Path, server: ServerProcess) -> None:
        super().__init__(base)
        self.file_url = self.url
        self.url = server.url

    def require_same_file(self, *databases: Path) -> None:
        """As `require_same`, from the server's file; the server has ended."""
        self.url = self.file_url
        self.require_same(*databases)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[RemoteHome, ServerProcess]]:
    with server_process(f"file://{tmp_path}/backup.dbak") as server:
        home = RemoteHome(tmp_path, server)
        home.init()
        yield home, server


@pytest.fixture(scope="module", autouse=True)
def silent(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RemoteHome, ServerProcess, Popen[str]]]:
    """A node that starts while its server is silent; it waits beside the tests of this module."""
    directory = tmp_path_factory.mktemp("silent")
    with server_process(f"file://{directory}/backup.dbak") as server:
        home = RemoteHome(directory, server)
        home.init()
        home.run(*_ROUTER, "--calls", "80")
        server.process.send_signal(signal.SIGSTOP)  # its system still takes connections
        with home.start(*_ROUTER, "--calls", "10") as node:
            try:
                yield home, server, node
            finally:
                server.process.send_signal(signal.SIGCONT)
                if node.poll() is None:
                    node.kill()


def _recorded(path: str, tmp_path: Path) -> Path:
    return captured.unpacked(Path(f"{path}.sqlite3.xz"), tmp_path / "recorded.sqlite3")


@contextlib.contextmanager
def _killed_all_the_while(server: ServerProcess) -> Iterator[list[int]]:
    """Kills the server and starts it again, a limited number of times; returns how often."""
    kills = [0]
    over = threading.Event()

    def kill() -> None:
        while kills[0] < _MOST_KILLS and not over.wait(0.25):
            server.kill()
            server.start()
            kills[0] += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield kills
    finally:
        over.set()
        killer.join()


@pytest.mark.parametrize("name", captured.SMALL if SOAK else ["router"])
def test_a_day_of_a_node_while_the_server_is_killed(
    tmp_path: Path, served: tuple[RemoteHome, ServerProcess], name: str
) -> None:
    home, server = served
    capture = str(CAPTURES / "small" / name)
    node = home.start("--capture", f"{capture}.jsonl.xz", "--rate", "150")
    with _killed_all_the_while(server) as kills:
        home.end(node)
    recorded = _recorded(capture, tmp_path)
    home.require_same(home.database, recorded)
    assert kills[0] > 2
    assert server.terminate() == 0
    home.require_same_file(home.database, recorded)


def test_a_node_killed_three_times_while_it_started(
    tmp_path: Path, served: tuple[RemoteHome, ServerProcess]
) -> None:
    home, server = served
    with _killed_all_the_while(server):
        home.run("--capture", f"{captured.CRASH}.jsonl.xz")
    assert "Last changes not applied" in home.log()
    home.require_same(home.database, _recorded(str(captured.CRASH), tmp_path))


def test_node_and_plugin_and_server_killed_at_every_turn(
    served: tuple[RemoteHome, ServerProcess],
) -> None:
    home, server = served
    arguments = [word for point in _KILLS for word in ("--crash", point)]
    with _killed_all_the_while(server):
        home.run(*_ROUTER, "--calls", "500", "--supervise", *arguments, "--variant")
    home.require_same(home.database)
    assert server.terminate() == 0
    home.require_same_file(home.database)


def test_plugin_killed_inside_a_wait_for_the_server(
    served: tuple[RemoteHome, ServerProcess],
) -> None:
    home, server = served
    home.run(*_ROUTER, "--calls", "80")
    node = home.start(*_ROUTER, "--calls", "200", "--rate", "100")
    home.wait_for_calls(120)
    server.kill()
    worker, _ = processes_of(node.pid)
    os.kill(worker, signal.SIGKILL)
    home.end(node, code=None)
    server.start()
    home.run(*_ROUTER, "--calls", "30")
    home.require_same(home.database)


def test_snapshot_brings_a_backup_on_a_server_up_to_the_node(
    tmp_path: Path, served: tuple[RemoteHome, ServerProcess]
) -> None:
    home, _ = served
    home.run(*_ROUTER, "--until", "60")
    home.set_options(on_gap="halt")
    lock = home.directory / "backup.lock"
    shutil.move(lock, tmp_path / "away")
    with programs.start(
        *("simulator", home.directory, *_ROUTER, "--until", 80), cwd=ROOT, stderr=subprocess.PIPE
    ) as node:
        node.communicate()
    assert node.returncode == 0
    shutil.move(tmp_path / "away", lock)
    home.run(*_ROUTER, "--calls", "20", code=None)
    assert "Backup is out of date" in home.log() + home.stderr
    said = home.cli("snapshot", "--lightning-dir", str(home.directory))
    assert "at data version 80" in said
    home.set_options(on_gap="snapshot")
    home.run(*_ROUTER, "--calls", "20", "--after-plugin", "1")
    home.run(*_ROUTER, "--calls", "20")
    assert "Backup healed by a snapshot" in home.log()
    home.require_same(home.database)


def test_node_that_starts_while_the_server_is_silent_is_halted_in_time(
    silent: tuple[RemoteHome, ServerProcess, Popen[str]],
) -> None:
    """Other plugins would give up some 120 s after their start, and take the node down."""
    home, server, node = silent
    _, said = node.communicate(timeout=250)
    server.process.send_signal(signal.SIGCONT)
    assert node.returncode != 0
    assert "could not be reached for 50 seconds" in said + home.log()
    home.run(*_ROUTER, "--calls", "10")
    home.require_same(home.database)
