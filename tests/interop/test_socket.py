"""The community's own client and server, over the wire with ours.

`CLN_BACKUP_INCUMBENT` names a checkout of it, which needs `PySocks`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.compaction.compact import compact
from cln_backup.model.change import FOREIGN_KEYS_ON, Change
from tests.histories import (
    add_all,
    payment,
    payments,
    started_node,
    told,
    told_by,
    wearing_payments,
)
from tests.socket.proxies import DOWN, UP, cut_after, proxy
from tests.socket.serving import server_process
from tests.socket.test_plugin import Node

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAMED = os.environ.get("CLN_BACKUP_INCUMBENT")
pytestmark = [
    pytest.mark.skipif(
        not _NAMED, reason="CLN_BACKUP_INCUMBENT names no checkout of the community's plugin"
    ),
    pytest.mark.skipif(
        find_spec("socks") is None,
        reason="the community's plugin needs PySocks: .venv/bin/pip install PySocks",
    ),
]


def _start() -> str:
    assert _NAMED is not None
    place = next(Path(_NAMED).rglob("socketbackend.py")).parent
    return (
        f"import sys; sys.path.insert(0, {str(place)!r})\n"
        "from backends import get_backend\nfrom backend import Change\n"
    )


def _old(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _start() + textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def old_server(tmp_path: Path) -> Iterator[int]:
    """The community's server on an empty file of ours; gives its port."""
    create_backend(f"file://{tmp_path}/node.bkp", None)
    code = """
    import socket, sys
    from server import SocketServer
    server = SocketServer(("127.0.0.1", 0), get_backend(sys.argv[1]))
    print(server.bind.getsockname()[1], flush=True)
    server.run()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _start() + textwrap.dedent(code), f"file://{tmp_path}/node.bkp"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    yield int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()


def test_old_client_on_our_server(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    history = [*started_node(), *wearing_payments(4, 24)]  # which a compaction makes smaller
    lines = [(change.version, list(change.transaction or ())) for change in history]
    with server_process(url) as server:
        said = _old(
            f"""
            b = get_backend(sys.argv[1])
            for version, transaction in {lines!r}:
                assert b.add_change(Change(version, None, transaction))
            assert b.rewind()
            b._request_metadata()
            print(b.protocol, b.version, b.prev_version, b.version_count)
            b.version_count = 0
            b.add_change(Change(*{(lines[-1][0], None, lines[-1][1])!r}))
            b._request_metadata()
            print([c.version for c in b.stream_changes()])
            print(b.compact()["after"]["version_count"])
            """,
            server.url,
        )
        assert server.terminate() == 0
    assert said.splitlines() == [
        f"1 {history[-2].version} 0 {len(history) - 1}",
        str([change.version for change in history]),
        "2",
    ]
    assert told_by(url)[-1] == told(history)[-1]


def test_our_client_on_the_old_server(tmp_path: Path, old_server: int) -> None:
    url = f"socket:127.0.0.1:{old_server}"
    history = [*started_node(), *payments(4, 12)]
    with open_writer(url) as backend:
        add_all(backend, history)
        backend.rewind()
        assert backend.version == 10
        add_all(backend, history[-1:])
    with open_reader(url) as reader:
        assert told(reader.stream_changes()) == told(history)
    assert compact(url)["after"]["version_count"] == 2
    with open_writer(url) as backend:
        backend.add_change(payment(12))
    assert told_by(url)[-1] == told([payment(12)])[0]
    assert told_by(f"file://{tmp_path}/node.bkp")[-1] == told([payment(12)])[0]


def test_node_that_crashed_on_the_old_server_leaves_what_can_be_restored(
    tmp_path: Path, old_server: int
) -> None:
    """An ON rider was between the dropped transaction and its replacement."""
    url = f"socket:127.0.0.1:{old_server}"
    history = [*started_node(), *payments(4, 12)]
    with open_writer(url) as backend:
        add_all(backend, history)
    with open_writer(url) as backend:  # as the plugin starts after a crash
        backend.rewind()
        assert backend.standing.head is not None
        assert backend.standing.head.kind is history[-2].kind
        if not backend.standing.head.foreign_keys:
            backend.add_change(Change(backend.version, None, [FOREIGN_KEYS_ON]))
        add_all(backend, history[-1:])
        add_all(backend, payments(12, 14))
    expected = told([*history, *payments(12, 14)])
    assert told_by(url) == expected
    assert told_by(f"file://{tmp_path}/node.bkp") == expected


def test_our_plugin_has_the_old_server_compact(tmp_path: Path, old_server: int) -> None:
    """It serves one connection at a time, which is the node's."""
    home = tmp_path / "regtest"
    home.mkdir()
    (home / "backup.lock").write_text(f'{{"backend_url": "socket:127.0.0.1:{old_server}"}}')
    node = Node(home)
    history = [*started_node(), *payments(4, 40)]
    for change in history:
        assert node.write(change) == {"result": "continue"}
    figures = node.call("backup-compact", {})
    assert figures["before"]["version_count"] == len(history)
    assert figures["after"]["version_count"] == 2
    for change in payments(40, 44):
        assert node.write(change) == {"result": "continue"}
    node.close()
    node = Node(home)
    assert node.write(payments(43, 44)[0]) == {"result": "continue"}
    assert any("Last changes not applied" in line for line in node.logged)
    node.close()
    assert told_by(f"file://{tmp_path}/node.bkp")[-1] == told(payments(43, 44))[0]


@pytest.mark.parametrize("direction", [UP, DOWN], ids=["request", "answer"])
def test_our_client_cut_after_every_byte_on_the_old_server(
    tmp_path: Path, old_server: int, direction: int
) -> None:
    with open_writer(f"socket:127.0.0.1:{old_server}") as backend:
        add_all(backend, started_node())
    version = 4
    while True:
        with proxy(old_server, cut_after(direction, version)) as between:
            with open_writer(f"socket:127.0.0.1:{between.port}") as backend:
                add_all(backend, payments(version, version + 1))
            version += 1
            if between.connections == 1:
                break
    found = told_by(f"file://{tmp_path}/node.bkp")
    assert found == told([*started_node(), *payments(4, version)])
    assert version > 30
