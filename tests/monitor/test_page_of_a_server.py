"""The page of a server: an overview of its nodes, and one page for each."""

from __future__ import annotations

import json
import os
import re
import stat
from typing import TYPE_CHECKING, Any

from cln_backup.backends import create_backend
from cln_backup.backends.socket.token_file import create_token
from cln_backup.monitor.figures import STORE_NAME
from tests import programs
from tests.histories import append, payment, started_node
from tests.monitor.serving import get
from tests.socket.serving import ServerProcess, server_process
from tests.waiting import wait_for

if TYPE_CHECKING:
    from pathlib import Path


def _port(server: ServerProcess) -> int:
    page = re.compile(r"The page is at http://127\.0\.0\.1:(\d+)/")
    found = wait_for(lambda: page.search("".join(server.said)))
    assert found is not None
    return int(found[1])


def test_page_of_each_node_of_a_server(tmp_path: Path) -> None:
    lines = []
    for name in ("alice", "bob"):
        create_backend(f"file://{tmp_path}/{name}.bkp", None)
        token_hash = create_token(str(tmp_path / f"{name}.token"))
        lines.append(f"{name} file://{tmp_path}/{name}.bkp {token_hash}\n")
    (tmp_path / "nodes").write_text("".join(lines))
    options = (
        "--nodes",
        str(tmp_path / "nodes"),
        "--page",
        "127.0.0.1:0",
        "--page-name",
        "n.lan",
        "--state-dir",
        str(tmp_path / "state"),
    )
    with server_process(*options, follows=True) as server:
        port = _port(server)
        html = get(port, "/")[2]
        assert re.findall(r'href="(/node\?node=\w+)"', html) == [
            "/node?node=alice",
            "/node?node=bob",
        ]
        append(f"{server.url}?node=bob&token-file={tmp_path}/bob.token", started_node())

        def told() -> Any:
            state = json.loads(get(port, "/state.json?node=bob", "n.lan")[2])["nodes"][0]["state"]
            return state["version"], state["proven_version"], state["protected"]

        wait_for(told, lambda found: found == (3, 3, None))
        assert "The backup of bob is safe" in get(port, "/node?node=bob")[2]
    assert stat.S_IMODE(os.stat(tmp_path / "state" / STORE_NAME).st_mode) == 0o600


def test_page_of_one_backup(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(url, [*started_node(), payment(4)])
    with server_process("--page", "127.0.0.1:0", "--state-dir", str(tmp_path), url) as server:
        html = get(_port(server), "/")[2]
        assert "The backup is safe" in html
        assert 'data-fact="version">4<' in html


def test_no_directory_for_the_figures_is_refused(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    done = programs.run("server", "--page", "127.0.0.1:0", url, "127.0.0.1:0")
    assert done.returncode != 0
    assert "Give a directory with --state-dir" in done.stderr


def test_an_address_that_is_not_one_is_refused(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    done = programs.run("server", "--page", "9738", url, "127.0.0.1:0")
    assert done.returncode != 0
    assert "'9738' cannot be understood" in done.stderr
