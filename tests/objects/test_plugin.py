"""A simulated node with its backup in a bucket: made, written to for a recorded day, restored."""

from __future__ import annotations

import contextlib
import json
import lzma
from typing import TYPE_CHECKING

import pytest

from tests.objects.engine import SECRET, engine
from tests.plugin.home import CAPTURES, Home
from tests.soak import SOAK
from tests.socket.serving import server_process

if TYPE_CHECKING:
    from pathlib import Path


_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))


@pytest.mark.parametrize("node", ["payee", "payer", "router"] if SOAK else ["payee"])
def test_recorded_day_comes_back_from_a_bucket(tmp_path: Path, node: str) -> None:
    home = Home(tmp_path)
    home.kind, home.url = "dir-encrypted", engine().url()
    home.init()
    home.run("--capture", str(CAPTURES / "small" / f"{node}.jsonl.xz"))
    recorded = tmp_path / "recorded.sqlite3"
    recorded.write_bytes(lzma.decompress((CAPTURES / "small" / f"{node}.sqlite3.xz").read_bytes()))
    home.require_same(home.database, recorded)
    status = json.loads(home.cli("status", "--json", home.url))
    assert status["version"] > 400
    assert SECRET not in home.log()
    assert "Good up to data version" in home.cli("verify", home.url)


@pytest.mark.parametrize("kind", ["s3", "sealed"])
def test_standby_is_promoted_while_the_old_node_runs(tmp_path: Path, kind: str) -> None:
    """On another machine, which another name of the same address stands for."""
    with contextlib.ExitStack() as stack:
        old = Home(tmp_path / "old")
        old.kind, old.url = "dir-encrypted", engine().url(deadline=60)
        if kind == "sealed":
            stored = f"objects://{tmp_path}/stored"
            old.url = stack.enter_context(server_process(stored)).url
        old.init()
        url = old.url.replace("127.0.0.1", "localhost")
        old.run(*_ROUTER, "--calls", "40")
        node = stack.enter_context(old.start(*_ROUTER, "--rate", "40"))
        old.wait_for_calls(60)
        new = Home(tmp_path / "new")
        new.url = url
        said = new.cli("standby", "--promote", "--original", url, str(new.directory))
        assert "at data version " in said
        old.end(node, code=None)
        assert "failed db_write" in old.stderr
        assert "Another process wrote to this backup" in old.log()
        old.require_same(new.database)  # nothing that was answered is lost
        new.run(*_ROUTER, "--calls", "30")
        new.require_same(new.database)
        report = old.run(*_ROUTER, code=None)
        assert report["committed"] == 0
