"""A simulated node with its backup in a bucket: made, written to for a recorded day, restored."""

from __future__ import annotations

import json
import lzma
from typing import TYPE_CHECKING

import pytest

from tests.objects.engine import SECRET, engine
from tests.plugin.home import CAPTURES, Home
from tests.soak import SOAK

if TYPE_CHECKING:
    from pathlib import Path


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
