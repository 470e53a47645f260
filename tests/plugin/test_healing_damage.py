"""Damage in a backup: an alarm, then a start that heals it, then a calm start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup.backends import open_reader
from cln_backup.model.errors import Damaged, ReplayFailed
from cln_backup.node.settings import Alarm, read_state, write_state
from cln_backup.replay.kept import KeptReplica
from tests.plugin.home import CAPTURES, Home
from tests.plugin.test_healing import _HEALED, _kept_replica, _snapshots, _without_plugin

if TYPE_CHECKING:
    from pathlib import Path

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))


def _flip(home: Home) -> None:
    """In the base, or in a change that is not in the newest segment.

    In a `file:` backup, which has no checksums, in the header of the base's database.
    """
    if home.kind == "file":
        path, content = home.backup, bytearray(home.backup.read_bytes())
        at = content.index(b"SQLite format 3") + 16
    else:
        pattern = "base-*" if home.kind == "dir" else "log-*1"
        [path] = home.backup.glob(pattern)
        content = bytearray(path.read_bytes())
        at = len(content) // 2
    content[at] ^= 1
    path.write_bytes(content)


def _found_by_a_new_replica(home: Home, place: Path) -> str:
    replica = KeptReplica.open(str(place))
    try:
        with open_reader(home.url) as reader:
            replica.catch_up(reader)
    except ReplayFailed:
        return "replay"
    except Damaged:
        return "damaged"
    finally:
        replica.close()
    return ""


def test_damage_is_healed_once(home: Home, tmp_path: Path) -> None:
    _without_plugin(home, "--until", "60")
    home.init()
    for _ in range(2):  # each writer begins a segment
        home.run(*_ROUTER, "--calls", "10")
    _flip(home)
    kind = _found_by_a_new_replica(home, tmp_path / "first")
    assert kind == ("replay" if home.kind == "file" else "damaged")
    directory = str(home.directory)
    alarm = Alarm(kind, "The backup is damaged.", 0.0)
    write_state(directory, read_state(directory)._replace(alarm=alarm))
    home.run(*_ROUTER, "--calls", "5")
    assert _HEALED in home.log()
    assert read_state(directory).alarm is None
    assert _found_by_a_new_replica(home, tmp_path / "second") == ""
    _kept_replica(home)
    snapshots = _snapshots(home)
    home.run(*_ROUTER, "--calls", "5")
    assert _snapshots(home) == snapshots
    assert home.log().count(_HEALED) == 1
    assert "BROKEN" not in home.log()
    home.require_same(home.database)
    if kind == "damaged":  # the earlier history
        assert list(home.backup.glob("before-undo-*"))
