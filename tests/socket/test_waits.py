"""How long a node waits for a server that is away, and what it says meanwhile."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, place_at
from cln_backup.backends.events import Event, Noticed
from cln_backup.model.errors import Unreachable
from cln_backup.plugin.patience import Patience
from cln_backup.plugin.replicator import Replicator
from tests.histories import OFF, add_all, append, payments, rider, started_node
from tests.plugin.home import CAPTURES, Home
from tests.socket.serving import server_process
from tests.waiting import wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from cln_backup.model.change import Change
    from tests.socket.serving import ServerProcess

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))
_ANNOUNCED = re.compile(r"Retrying for (\d+) more seconds")
_START_FIRST = "Start the server first"
_IN_THE_URL = "deadline=SECONDS"


@pytest.mark.parametrize("deadline_s", [1, 3])
def test_gives_up_no_earlier_than_it_announced(deadline_s: int, tmp_path: Path) -> None:
    """Of 18 seconds it waited 16.3, of 5 only 3.2: the last pause was left out."""
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    told_at: list[tuple[float, Event]] = []
    with server_process(url) as server:
        place = place_at(f"{server.url}?deadline={deadline_s}")
        with place.open_writer(
            on_event=lambda event: told_at.append((time.time(), event))
        ) as writer:
            add_all(writer, started_node())
            server.kill()
            began_s = time.time()
            with pytest.raises(Unreachable, match=f"for {deadline_s} seconds") as caught:
                writer.add_change(payments(4, 5)[0])
            ended_s = time.time()
    assert ended_s - began_s >= deadline_s
    announced = [
        (at_s, int(found[1]))
        for at_s, event in told_at
        if event.noticed is Noticed.WAITING and (found := _ANNOUNCED.search(event.text)) is not None
    ]
    assert announced
    assert all(at_s + more_s <= ended_s for at_s, more_s in announced)
    assert _IN_THE_URL in str(caught.value)


@pytest.mark.parametrize("call", ["the first", "a later"])
def test_wait_for_a_server_is_short_while_the_node_starts(call: str, tmp_path: Path) -> None:
    """Whatever is asked of the server then: other plugins give up some 120 s after the start."""
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(url, [*started_node(), rider(3, OFF)])  # so the first call writes a rider by itself
    home = tmp_path / "bitcoin"
    home.mkdir()
    with server_process(url) as server:
        (home / "backup.lock").write_text(json.dumps({"backend_url": server.url}))
        patience = Patience(together_s=0, least_s=1)
        log = _Stop(server, "Versions match up" if call == "the first" else "")
        replicator = Replicator(str(home), log, patience)
        changes = payments(4, 6)
        if call == "a later":
            _write(replicator, changes.pop(0))
            server.kill()
        began_s = time.monotonic()
        with pytest.raises(Unreachable, match="for 1 seconds") as caught:
            _write(replicator, changes[0])
        assert time.monotonic() - began_s >= 1
        replicator.close()
    assert _START_FIRST in str(caught.value)
    assert _IN_THE_URL not in str(caught.value)


def _write(replicator: Replicator, change: Change) -> None:
    assert change.transaction is not None
    replicator.db_write(change.version, change.transaction)


class _Stop:
    """Kills a server when something is logged."""

    def __init__(self, server: ServerProcess, when: str) -> None:
        self._server = server
        self._when = when

    def __call__(self, message: str) -> None:
        if message == self._when:
            self._server.kill()


def test_start_bounds_no_wait_any_more_when_the_node_is_up() -> None:
    patience = Patience()
    assert 5 <= (patience.bound_s() or 0) <= 80
    patience.node_is_up()
    assert patience.bound_s() is None
    assert Patience(start_s=-1).bound_s() is None  # whatever was heard of it


@pytest.mark.parametrize("up", [False, True], ids=["starts", "is up"])
def test_node_that_is_up_waits_for_as_long_as_the_url_says(up: bool, tmp_path: Path) -> None:
    """Nodes that had been up for long were stopped after 3 s: they were 77 s old."""
    home = Home(tmp_path)
    create_backend(home.url, None)
    with server_process(home.url) as server:
        lock = {"backend_url": f"{server.url}?deadline=300"}
        (home.directory / "backup.lock").write_text(json.dumps(lock))
        before_init = "10" if up else "100"
        node = home.start(*_ROUTER, "--before-init", before_init, "--rate", "20", "--hold")
        if up:
            home.wait_for_calls(12)
            home.call("backup-status")  # by then listconfigs is answered
        else:
            _wait_for(home, re.compile("Versions match up"))
        server.kill()
        seconds = int(_wait_for(home, _ANNOUNCED)[1])
        assert (seconds > 200) is up
        server.start()
        _wait_for(home, re.compile("answers again"))
        node.kill()
        node.communicate()


def _wait_for(home: Home, pattern: re.Pattern[str]) -> re.Match[str]:
    log = home.directory / "lightningd.log"
    found = wait_for(
        lambda: pattern.search(log.read_text() if log.exists() else ""), missing=pattern.pattern
    )
    assert found is not None
    return found
