"""An alarm that a start cannot heal: the node goes on where that is safe."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends.events import Event, Noticed
from cln_backup.model.errors import Discontinuity
from cln_backup.node.settings import Alarm, read_state, write_state
from cln_backup.plugin.patience import Patience
from cln_backup.plugin.replicator import Replicator
from tests.histories import bump
from tests.plugin.home import CAPTURES, Home
from tests.plugin.test_healing import _HEALED, _grow, _kept_replica, _version

if TYPE_CHECKING:
    from pathlib import Path

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))


def _alarm(home: Home, kind: str) -> Alarm:
    directory, alarm = str(home.directory), Alarm(kind, "The change cannot be replayed.", 0.0)
    write_state(directory, read_state(directory)._replace(alarm=alarm))
    return alarm


def _without_time(home: Home) -> tuple[Replicator, list[Event]]:
    events: list[Event] = []
    no_time = Patience(together_s=0.0, least_s=0.0)
    return Replicator(str(home.directory), lambda _: None, no_time, events.append), events


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_node_goes_on_with_an_alarm_that_cannot_be_healed(kind: str, tmp_path: Path) -> None:
    """No time, no room: nothing is lost by going on, and the next start heals it."""
    home = Home(tmp_path, kind)
    _grow(home)
    home.set_options(on_gap="halt")  # it is no gap
    alarm, version = _alarm(home, "replay"), _version(home.database)
    replicator, events = _without_time(home)
    replicator.db_write(version + 1, [bump(version + 1)])
    replicator.settle()
    replicator.close()
    [warning] = [event.text for event in events if event.noticed is Noticed.WARNED]
    assert "still cannot be restored to its last version" in warning
    assert "backup-cli snapshot --lightning-dir" in warning
    assert read_state(str(home.directory)).alarm == alarm
    home.run(*_ROUTER, "--calls", "5")
    assert _HEALED in home.log()
    assert read_state(str(home.directory)).alarm is None
    home.require_same(home.database)


def test_backup_that_would_restore_to_other_contents_keeps_the_node_halted(tmp_path: Path) -> None:
    home = Home(tmp_path, "dir")
    _grow(home)
    _alarm(home, "content")
    version, before = _version(home.database), home.stored()
    replicator, _ = _without_time(home)
    with pytest.raises(Discontinuity, match="could not append a snapshot"):
        replicator.db_write(version + 1, [bump(version + 1)])
    assert home.stored() == before


def _file(replica: Path) -> None:
    for path in replica.iterdir():
        path.unlink()
    replica.rmdir()
    replica.write_text("a file")


def _other_database(replica: Path) -> None:
    (replica / "replica.sqlite3").write_bytes(b"not a database" * 1000)


def _directories(replica: Path) -> None:
    for name in ("replica.sqlite3", "position.json"):
        (replica / name).unlink()
        (replica / name / "in").mkdir(parents=True)


def _strange_note(replica: Path) -> None:
    (replica / "position.json").write_text('{"version": 1e999, "digest": null}')
    state = read_state(str(replica.parent))
    write_state(str(replica.parent), state._replace(replica_dir=f"{replica}\0"))


def _torn_state(replica: Path) -> None:
    (replica.parent / "backup.state").write_text('{"boot_id": "')


@pytest.mark.parametrize(
    "disaster", [_file, _other_database, _directories, _strange_note, _torn_state]
)
def test_no_disaster_of_the_replica_stops_the_node(disaster: object, tmp_path: Path) -> None:
    home = Home(tmp_path, "dir")
    _grow(home)
    _kept_replica(home)
    disaster(home.directory / "backup.replica")  # type: ignore[operator]
    node = home.start(*_ROUTER, "--calls", "5", "--hold")
    deadline_s = time.monotonic() + 120
    while (status := home.call("backup-status"))["follower"] == "starting":
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert status["protected"] is True
    assert status["alarm"] is None
    home.call("stop")
    home.end(node)
    assert "BROKEN" not in home.log()
    home.require_same(home.database)
