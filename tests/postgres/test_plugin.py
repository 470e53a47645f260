"""A simulated node with its backup in a database: made, written to, killed, compacted, restored."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import redacted
from tests import postgres_cluster
from tests.plugin.home import CAPTURES, Home

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", ["postgresql", "postgresql-encrypted"])
def test_node_comes_back_from_a_database(tmp_path: Path, kind: str) -> None:
    home = Home(tmp_path)
    home.kind = "dir-encrypted" if kind.endswith("encrypted") else "file"
    home.url = postgres_cluster.shared().url(postgres_cluster.node_of(tmp_path))
    capture = str(CAPTURES / "small" / "payee.jsonl.xz")
    said = home.cli("init", "--lightning-dir", str(home.directory), *_encrypt(kind), home.url)
    assert "GRANT SELECT, INSERT, UPDATE, DELETE" in said
    home.url = json.loads((home.directory / "backup.lock").read_text())["backend_url"]
    home.run("--capture", capture, "--calls", "60")
    home.require_same(home.database)
    status = json.loads(home.cli("status", "--json", home.url))
    assert status["backend_url"] == redacted(home.url)
    assert "on the disk of the server" in status["durability"]
    assert "Good up to data version" in home.cli("verify", home.url)
    if kind == "postgresql":
        return
    copied = f"dir://{tmp_path}/copied"
    home.cli("copy", home.url, copied)
    back = postgres_cluster.shared().url(postgres_cluster.node_of(tmp_path) + ".copy")
    home.cli("copy", copied, back)
    assert "Good up to data version" in home.cli("verify", back)


def _encrypt(kind: str) -> tuple[str, ...]:
    return ("--encrypt",) if kind.endswith("encrypted") else ()
