"""The page beside a simulated node: it is served when asked for, and its trouble is no harm."""

from __future__ import annotations

import json
import os
import re
import stat
from typing import TYPE_CHECKING, Any

import pytest

from cln_backup.monitor.figures import STORE_NAME
from tests.monitor.serving import get
from tests.plugin.home import CAPTURES, Home
from tests.waiting import wait_for, wait_for_process_in, wait_until_ended

if TYPE_CHECKING:
    from pathlib import Path

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path, "dir")
    home.init()
    return home


def _port(home: Home) -> int:
    home.wait_for_calls(1)
    found = wait_for(
        lambda: re.search(r"The page is at http://127\.0\.0\.1:(\d+)/", home.log()),
        missing=home.log,
    )
    assert found is not None
    return int(found[1])


def test_page_of_a_node_shows_its_state_and_goes_with_it(home: Home) -> None:
    page = ("--option", "backup-page=127.0.0.1:0", "--option", "backup-page-name=node.lan")
    node = home.start(*_ROUTER, "--calls", "50", "--hold", *page)
    port = _port(home)
    status, _, html = get(port, "/", "node.lan")
    assert (status, "cln-backup" in html) == (200, True)
    assert get(port, "/", "evil.example")[0] == 421
    home.wait_for_calls(50)
    version = home.call("backup-status")["version"]

    def told() -> Any:
        return json.loads(get(port, "/state.json")[2])["nodes"][0]["state"]

    wait_for(told, lambda state: state["version"] == version, home.log)
    assert json.loads(get(port, "/state.json")[2])["verdict"] in ("good", "warning")
    assert stat.S_IMODE(os.stat(home.directory / STORE_NAME).st_mode) == 0o600
    monitor = wait_for_process_in(home.directory, "cln_backup.monitor.process")
    home.call("stop")
    home.end(node)
    wait_until_ended(monitor)


def test_an_address_that_is_not_one_is_said_and_the_node_runs(home: Home) -> None:
    home.run(*_ROUTER, "--calls", "5", "--option", "backup-page=9738")
    assert "The page is not served: backup-page=9738 cannot be understood" in home.log()
