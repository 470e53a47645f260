"""The backup compacts by itself, beside a node that goes on writing."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_writer
from cln_backup.compaction.policy import Limits
from cln_backup.node.settings import Alarm
from cln_backup.plugin.compact_command import CompactCommand
from cln_backup.plugin.compaction_options import limits_of
from cln_backup.plugin.following import Following
from cln_backup.plugin.replicator import Replicator
from cln_backup.plugin.self_compaction import SelfCompaction
from tests.histories import append, first, payments
from tests.plugin.home import Home
from tests.waiting import wait_for

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

_OFTEN = ("--option", "backup-compact-max-changes=300")
_BY_ITSELF = "Starting compaction, because the log has more changes than the policy allows"


@pytest.mark.parametrize("kind", ["file", "dir-encrypted"])
def test_busy_node_compacts_several_times(home: Home) -> None:
    home.follows = True
    home.init()
    node = home.start("--generate", "900", "--rate", "300", "--hold", *_OFTEN)
    home.wait_for_calls(905)
    status = _settled(home)
    home.call("stop")
    home.end(node)
    assert home.log().count(_BY_ITSELF) > 0
    assert home.log().count("Compaction finished") > 0
    assert status["version_count"] < 800
    assert status["last_compaction_at"] > 0
    assert status["next_compaction"] is None
    assert status["backupsize"] <= status["space_bound_bytes"]
    home.require_same(home.database)


def test_compaction_by_itself_can_be_switched_off(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.init()
    off = ("--option", "backup-compact=off")
    node = home.start("--generate", "500", "--hold", *_OFTEN, *off)
    home.wait_for_calls(505)
    status = home.call("backup-status")
    home.call("stop")
    home.end(node)
    assert "Starting compaction" not in home.log()
    assert status["version_count"] == 505
    assert status["space_bound_bytes"] is None


@pytest.mark.parametrize("is_alarmed", [False, True])
def test_alarm_that_is_not_written_yet_holds_it_off(
    is_alarmed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy node leaves no moment to write it."""
    monkeypatch.chdir(tmp_path)
    url = f"file://{tmp_path}/backup.dbak"
    create_backend(url, None)
    append(url, [first(), *payments(2, 320)])
    poll, log = select.poll(), lambda _level, _text: None
    replicator = Replicator(str(tmp_path), print)
    command = CompactCommand(replicator, Following(replicator, log, poll), log, poll)
    by_itself = SelfCompaction(replicator, command, log)
    with open_writer(url) as writer:
        replicator.backend = writer
        if is_alarmed:
            replicator.note(alarm=Alarm("content", "It differs.", 1.0))
        by_itself.begin({"backup-compact-max-changes": 300})
        by_itself.look()
        assert command.is_under_way() is not is_alarmed
        compactor = command._compactor
        command.close()
        if compactor is not None:
            compactor.wait()


@pytest.mark.parametrize(
    ("option", "value", "used"),
    [
        ("backup-compact", "always", "auto"),
        ("backup-compact-ratio", "much", "1"),
        ("backup-compact-ratio", "0.01", "1"),
        ("backup-compact-ratio", "nan", "1"),
        ("backup-compact-max-changes", "-1", "500000"),
        ("backup-compact-max-days", "0", "30"),
    ],
)
def test_invalid_option_is_told_and_the_default_is_used(option: str, value: str, used: str) -> None:
    warnings: list[str] = []
    limits = limits_of({option: value}, lambda level, text: warnings.append(f"{level}: {text}"))
    assert limits == Limits()
    (warning,) = warnings
    assert warning.startswith(f"warn: The option {option} is {value!r}; it must be ")
    assert warning.endswith(f" {used} is used.")


def test_options_are_taken() -> None:
    given = {
        "backup-compact": "auto",
        "backup-compact-ratio": "2.5",
        "backup-compact-max-changes": 1_000,
        "backup-compact-max-days": 7,
    }
    warnings: list[str] = []
    assert limits_of(given, lambda _level, text: warnings.append(text)) == Limits(2.5, 1_000, 7)
    assert limits_of({"backup-compact": "off"}, lambda _level, text: warnings.append(text)) is None
    assert warnings == []


def _settled(home: Home) -> Any:
    """The status when no compaction runs, and none is due."""
    return wait_for(
        lambda: home.call("backup-status"),
        lambda status: not status["compacting"] and status["next_compaction"] is None,
        home.log,
        pause_s=0.05,
    )
