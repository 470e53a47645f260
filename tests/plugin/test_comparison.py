"""The node's database is compared with its backup at each start, beside the running node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.histories import database
from tests.plugin.home import CAPTURES, Home
from tests.waiting import wait_for

if TYPE_CHECKING:
    from pathlib import Path

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))


def test_difference_raises_an_alarm_beside_the_running_node(tmp_path: Path) -> None:
    """In tables that the start does not compare before its first answer."""
    home = Home(tmp_path, "dir")
    home.init()
    home.run(*_ROUTER, "--calls", "700")
    home.follows = True  # only now: the start compares all of it with a replica that is there
    with database(home.database) as connection:
        connection.execute("UPDATE forwards SET in_msatoshi = in_msatoshi + 1 WHERE in_htlc_id < 2")
        connection.execute("DELETE FROM blocks WHERE height = 110")
    node = home.start(*_ROUTER, "--calls", "20", "--hold")
    # A replica that differs is built again first, and compared once more.
    status = wait_for(lambda: home.call("backup-status"), lambda found: found["alarm"], home.log)
    assert status["alarm"]["kind"] == "content"
    text = "blocks: 1 row is missing in the database; forwards: 2 rows differ."
    assert text in status["alarm"]["text"]
    assert status["protected"] is True
    home.call("stop")
    home.end(node)
    assert "The backup has a fault: Its content differs from the node's database" in home.log()
