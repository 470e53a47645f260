"""Packets that are dropped: neither side hears that the other is gone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.model.errors import WriterConflict
from cln_backup.server.served import Served
from tests.histories import add_all, append, payment, payments, started_node, told, told_by
from tests.socket.proxies import DOWN, UP, proxy
from tests.socket.serving import server_here, server_process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cln_backup.server.right import Client


def _made(path: Path) -> str:
    url = f"file://{path}/node.bkp"
    create_backend(url, None)
    append(url, started_node())
    return url


def _dropping(dropped: threading.Event, *directions: int) -> Callable[[int], Callable[..., bytes]]:
    """Drops what comes on the first connection, in these directions, once the event is set."""

    def plan(number: int) -> Callable[[int, bytes], bytes]:
        def treat(direction: int, data: bytes) -> bytes:
            return b"" if number == 0 and dropped.is_set() and direction in directions else data

        return treat

    return plan


@pytest.mark.parametrize("directions", [(UP,), (DOWN,), (UP, DOWN)], ids=["to", "from", "both"])
def test_connection_on_which_nothing_comes_through_any_more(
    tmp_path: Path, directions: tuple[int, ...]
) -> None:
    """The client finds out by itself; the server drops its previous connection at once."""
    url = _made(tmp_path)
    dropped = threading.Event()
    with (
        server_process(url) as server,
        proxy(server.port, _dropping(dropped, *directions)) as between,
    ):
        there = f"socket:127.0.0.1:{between.port}?deadline=12"
        with open_writer(there) as writer:
            add_all(writer, payments(4, 6))
            dropped.set()
            add_all(writer, payments(6, 9))
            assert between.connections == 2
    assert told_by(url) == told([*started_node(), *payments(4, 9)])


def test_writer_that_has_left_a_busy_server_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine, a node that was started again was refused because of itself."""
    url, leave = _made(tmp_path), Served.leave

    def leave_late(node: Served, client: Client, received_bytes: int) -> None:
        time.sleep(0.5)
        leave(node, client, received_bytes)

    monkeypatch.setattr(Served, "leave", leave_late)
    with server_here() as server:
        there = server.add(url)
        for version in (4, 5):
            append(there, [payment(version)])
    assert told_by(url) == told([*started_node(), *map(payment, (4, 5))])


def test_restore_on_which_nothing_comes_through_any_more(tmp_path: Path) -> None:
    url = _made(tmp_path)
    history = [payment(version, 30_000 * "x") for version in range(4, 200)]
    append(url, history)
    dropped = threading.Event()
    with server_process(url) as server, proxy(server.port, _dropping(dropped, DOWN)) as between:
        there = f"socket:127.0.0.1:{between.port}?deadline=12"
        with open_reader(there) as reader:
            changes = reader.stream_changes()
            first = next(changes)
            dropped.set()
            assert told([first, *changes]) == told([*started_node(), *history])
        assert between.connections == 2


def test_other_process_is_kept_out_by_a_tunnel_that_lives_and_let_in_by_a_takeover(
    tmp_path: Path,
) -> None:
    """Behind a tunnel the server cannot see that the node is gone: it must be told."""
    url = _made(tmp_path)
    dropped = threading.Event()
    with server_process(url) as server, proxy(server.port, _dropping(dropped, UP, DOWN)) as between:
        there = f"socket:127.0.0.1:{between.port}"
        old = open_writer(there)
        dropped.set()
        with pytest.raises(WriterConflict, match="backup-cli takeover"):
            open_writer(there)
        cli = os.path.join(os.path.dirname(sys.executable), "backup-cli")
        subprocess.run([cli, "takeover", there], check=True, capture_output=True)
        append(there, [payment(4)])
        old.close()
    assert told_by(url) == told([*started_node(), payment(4)])


_IN_A_NETWORK_OF_ITS_OWN = """
    import subprocess, sys
    sys.path.insert(0, {root!r})
    from tests.histories import add_all, append, payments
    from tests.socket.serving import server_process

    def ip(*words):
        subprocess.run(["ip", *words], check=True)

    ip("link", "set", "lo", "up")
    ip("addr", "add", "10.9.0.1/32", "dev", "lo")
    ip("addr", "add", "10.9.0.2/32", "dev", "lo")
    with server_process("--insecure", {url!r}, host="10.9.0.1") as server:
        client = (
            "import sys, time; sys.path.insert(0, {root!r}); "
            "import socket as s; connect = s.socket.connect\\n"
            "def bound(self, place): self.bind(('10.9.0.2', 0)); connect(self, place)\\n"
            "s.socket.connect = bound\\n"
            "from cln_backup.backends import open_writer; "
            "from tests.histories import add_all, payments; "
            f"b = open_writer({{server.url!r}}); add_all(b, payments(4, 6)); "
            "print('written', flush=True); time.sleep(600)"
        )
        node = subprocess.Popen([sys.executable, "-c", client], stdout=subprocess.PIPE)
        assert node.stdout.readline() == b"written\\n"
        # From now on nothing comes from there, not even that it is gone.
        ip("addr", "del", "10.9.0.2/32", "dev", "lo")
        ip("route", "add", "blackhole", "10.9.0.2/32")
        node.kill()
        node.wait()
        append(server.url, payments(6, 8))
        assert server.terminate() == 0
    print("came back")
"""


@pytest.mark.skipif(
    shutil.which("unshare") is None or shutil.which("ip") is None,
    reason="unshare and ip make a network whose packets can be dropped",
)
def test_node_whose_machine_vanished_comes_back_without_a_takeover(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs root, or the right to make a network")
    url = _made(tmp_path)
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    script = textwrap.dedent(_IN_A_NETWORK_OF_ITS_OWN).format(root=root, url=url)
    done = subprocess.run(
        ["unshare", "-rn", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert "came back" in done.stdout, done.stderr
    assert told_by(url) == told([*started_node(), *payments(4, 8)])
