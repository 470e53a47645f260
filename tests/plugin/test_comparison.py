"""The node's database is compared with its backup at each start, beside the running node."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.histories import database
from tests.plugin.home import CAPTURES, WAIT_S, Home

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))


def _status(home: Home, has: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The status, as soon as it has something; the follower has the lowest priority."""
    deadline_s = time.monotonic() + 4 * WAIT_S
    while True:
        status: dict[str, Any] = home.call("backup-status")
        if has(status):
            return status
        assert time.monotonic() < deadline_s, status
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["file", "dir-encrypted"])
def test_all_tables_are_compared_beside_the_running_node(kind: str, tmp_path: Path) -> None:
    home = Home(tmp_path, kind)
    home.init()
    node = home.start(*_ROUTER, "--calls", "700", "--rate", "200", "--hold")
    status = _status(home, lambda status: status["database_compared_at"])
    assert status["alarm"] is None
    # It goes on to follow.
    home.wait_for_calls(700)
    status = _status(home, lambda status: status["proven_version"] == 698)
    assert status["alarm"] is None
    home.call("stop")
    home.end(node)


def test_difference_raises_an_alarm_beside_the_running_node(tmp_path: Path) -> None:
    """In tables that the start does not compare before its first answer."""
    home = Home(tmp_path, "dir")
    home.init()
    home.run(*_ROUTER, "--calls", "700")
    with database(home.database) as connection:
        connection.execute("UPDATE forwards SET in_msatoshi = in_msatoshi + 1 WHERE in_htlc_id < 2")
        connection.execute("DELETE FROM blocks WHERE height = 110")
        connection.execute("CREATE INDEX mine ON forwards (out_htlc_id)")
    node = home.start(*_ROUTER, "--calls", "20", "--hold")
    status = _status(home, lambda status: status["alarm"])
    assert status["alarm"]["kind"] == "content"
    text = status["alarm"]["text"]
    assert "blocks: 1 row is missing in the database; forwards: 2 rows differ." in text
    assert "mine" not in text
    assert status["protected"] is True
    home.call("stop")
    home.end(node)
    assert "The backup has a fault: Its content differs from the node's database" in home.log()


def test_index_that_an_operator_made_is_only_noted(tmp_path: Path) -> None:
    home = Home(tmp_path, "dir")
    home.init()
    home.run(*_ROUTER, "--calls", "300")
    with database(home.database) as connection:
        connection.execute("CREATE INDEX mine ON forwards (out_htlc_id)")
        connection.execute("VACUUM")
    node = home.start(*_ROUTER, "--calls", "20", "--hold")
    status = _status(home, lambda status: status["database_compared_at"])
    assert status["alarm"] is None
    home.call("stop")
    home.end(node)
    assert "the index mine is missing in the backup" in home.log() + home.stderr
