"""Each crash point crashes there: what the plugin was told, and the database's version then."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import apsw
import pytest

from simulator import content
from simulator.build import build_database, place_database
from simulator.calls import all_calls, committed_calls, read_recording
from simulator.crash import CrashPoint, PlanError, parse_point
from simulator.database import NodeDatabase
from simulator.load import Load, generate
from simulator.settings import Exit
from tests.simulator.simulated_node import CAPTURES, Setup
from tests.waiting import wait_until_ended

if TYPE_CHECKING:
    from pathlib import Path

TRANSACTIONS = 15
GENERATE = ("--generate", str(TRANSACTIONS))
CALL = 12
VERSION = 11  # of call 12: two of the twelve before it are riders
KILLED = -signal.SIGKILL


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def assert_at(setup: Setup, version: int) -> None:
    """Compare the database, recovered as the next process would, with the generated load."""
    expected = setup.directory.with_name(f"expected-{version}.sqlite3")
    build_database(generate(Load(TRANSACTIONS)), expected, until=version)
    assert content.differences(setup.database, expected) == []


def crash(setup: Setup, point: str, *arguments: str) -> None:
    """Run a node into a crash, and wait until its plugin has noticed."""
    ended = setup.run(*GENERATE, "--plugin", setup.plugin(), "--crash", point, *arguments)
    assert ended.code == KILLED
    assert ended.report["exit_reason"].startswith("crash: ")
    wait_until_ended(setup.messages()[0]["pid"])
    assert setup.messages()[-1]["eof"]
    assert setup.pid_file.exists()


@pytest.mark.parametrize(
    ("point", "told"),
    [("before-hook", False), ("in-plugin", True), ("after-answer", True)],
)
def test_node_dies_around_the_hook_uncommitted(point: str, told: bool, setup: Setup) -> None:
    crash(setup, f"{point}@{CALL}")
    assert setup.versions()[-1] == (VERSION if told else VERSION - 1)
    assert_at(setup, VERSION - 1)


@pytest.mark.parametrize("size", [0, 1, 100])
def test_node_dies_inside_the_request(size: int, setup: Setup) -> None:
    crash(setup, f"in-plugin@{CALL}:bytes={size}")
    assert setup.versions()[-1] == VERSION - 1
    assert setup.messages()[-1] == {"eof": True, "partial": size}
    assert_at(setup, VERSION - 1)


@pytest.mark.parametrize(
    ("step", "mode", "stands_at", "journal"),
    [
        ("write", "delete", VERSION - 1, True),
        ("sync", "delete", VERSION - 1, True),
        ("delete", "delete", VERSION - 1, True),
        ("done", "delete", VERSION, False),
        ("write", "wal", VERSION - 1, False),
        ("sync", "wal", VERSION, False),
        ("done", "wal", VERSION, False),
    ],
)
def test_node_dies_inside_the_commit(
    step: str, mode: str, stands_at: int, journal: bool, setup: Setup
) -> None:
    point = f"in-commit@{CALL}:step={step}"
    crash(setup, point, "--journal-mode", mode, "--synchronous", "full")
    assert setup.versions()[-1] == VERSION
    left = setup.database.with_name("lightningd.sqlite3-journal")
    assert left.exists() is journal
    assert_at(setup, stands_at)
    # The files are those of a commit in progress: without the journal the database differs.
    if step == "sync" and mode == "delete":
        left.unlink()
        assert_at(setup, VERSION)


def test_a_step_that_a_commit_does_not_have(setup: Setup) -> None:
    arguments = ("--crash", f"in-commit@{CALL}:step=delete", "--journal-mode", "wal")
    ended = setup.run(*GENERATE, *arguments)
    assert ended.code == Exit.NOT_REACHED


def test_crashes_need_no_plugin(setup: Setup) -> None:
    assert setup.run(*GENERATE, "--crash", f"in-plugin@{CALL}").code == KILLED
    assert_at(setup, VERSION - 1)


def test_a_crash_in_a_rider(setup: Setup) -> None:
    crash(setup, "after-answer@1")
    assert setup.versions() == [1, 1]
    assert_at(setup, 1)


# The next process


def test_next_process_goes_on_with_the_call_that_was_lost(setup: Setup) -> None:
    crash(setup, f"after-answer@{CALL}")
    setup.forget()
    assert setup.run(*GENERATE, "--plugin", setup.plugin()).code == 0
    assert setup.versions()[0] == VERSION
    assert_at(setup, TRANSACTIONS + 3)


def test_next_process_sends_another_variant(setup: Setup, tmp_path: Path) -> None:
    crash(setup, f"after-answer@{CALL}")
    lost = setup.messages("db_write")[-1]["params"]
    setup.forget()
    ended = setup.run(*GENERATE, "--plugin", setup.plugin(), "--variant", "--calls", "1")
    assert ended.code == 0
    sent = setup.messages("db_write")[-1]["params"]
    assert (sent["data_version"], sent["writes"][-1]) == (VERSION, lost["writes"][-1])
    assert sent["writes"] != lost["writes"]

    # A replay of the lost call as well gives a different database.
    both = tmp_path / "both.sqlite3"
    build_database(generate(Load(TRANSACTIONS)), both, until=VERSION)
    connection = apsw.Connection(str(both))
    connection.execute(sent["writes"][-2])
    connection.close()
    differences = content.differences(setup.database, both)
    assert any("simulator_again" in line for line in differences)


def test_next_process_repeats_the_rider_its_transaction_needs(setup: Setup) -> None:
    crash(setup, "before-hook@2")
    setup.forget()
    assert setup.run(*GENERATE, "--plugin", setup.plugin(), "--calls", "2").code == 0
    assert [message["params"]["writes"][0] for message in setup.messages("db_write")] == [
        "PRAGMA foreign_keys = OFF;",
        "ALTER TABLE invoices RENAME TO temp_invoices;",
    ]


def test_next_process_does_not_say_what_is_so_anyway(setup: Setup) -> None:
    crash(setup, "before-hook@3")
    setup.forget()
    assert setup.run(*GENERATE, "--plugin", setup.plugin(), "--calls", "1").code == 0
    assert setup.versions() == [3]


def test_a_database_of_other_calls_is_refused(setup: Setup) -> None:
    assert setup.run("--generate", "50").code == 0
    ended = setup.run(*GENERATE)
    assert ended.code == Exit.SOURCE
    assert "the calls end at 18, the database is at 53" in ended.stderr


# Several processes


def test_supervisor_replays_a_recording_with_its_crashes(setup: Setup, tmp_path: Path) -> None:
    recording = CAPTURES / "crash" / "kill9-three-times.jsonl.xz"
    plugin = ("--plugin", setup.plugin())
    ended = setup.run("--capture", str(recording), *plugin)
    assert ended.code == 0
    assert [process["exit_reason"] for process in ended.report["processes"]] == [
        "crash: in-plugin@8",
        "crash: in-plugin@10",
        "crash: after-answer@13",
        "all calls made",
    ]
    # Each process had its own plugin, which was told exactly what the recorded one was.
    told = [
        (message["params"]["data_version"], message["params"]["writes"])
        for message in setup.messages("db_write")
    ]
    recorded = [(call.data_version, call.writes) for call in all_calls(read_recording(recording))]
    assert told == recorded
    assert len({message["pid"] for message in setup.messages("db_write")}) == 4

    expected = tmp_path / "expected.sqlite3"
    place_database(CAPTURES / "crash" / "kill9-three-times.sqlite3.xz", expected)
    assert content.differences(setup.database, expected) == []


def test_supervisor_goes_on_after_each_planned_crash(setup: Setup) -> None:
    points = (
        *("in-commit@7", "after-answer@9", "in-plugin@9:bytes=40"),
        *("kill-plugin@11:when=sent", "before-hook@14"),
    )
    ended = setup.run(
        *(*GENERATE, "--plugin", setup.plugin(silent=100), "--supervise"),
        *(word for point in points for word in ("--crash", point)),
        *("--variant", "--synchronous", "full"),
    )
    assert ended.code == 0
    reasons = [process["exit_reason"] for process in ended.report["processes"]]
    assert reasons[:3] == [
        "crash: in-commit@7:step=write",
        "crash: after-answer@9",
        "crash: in-plugin@9",
    ]
    assert len(reasons) in (5, 6)  # the answer may be quicker than the signal
    assert reasons[-2:] == ["crash: before-hook@14", "all calls made"]
    database = NodeDatabase(str(setup.database))
    assert database.data_version == TRANSACTIONS + 3
    database.close()


def test_supervised_recording_in_one_process(setup: Setup, tmp_path: Path) -> None:
    recording = CAPTURES / "crash" / "kill9-three-times.jsonl.xz"
    arguments = ("--capture", str(recording), "--plugin", setup.plugin())
    ended = setup.run(*arguments, "--one-process", "--crash", "after-answer@20")
    assert ended.code == KILLED
    assert setup.run(*arguments, "--one-process").code == 0
    expected = tmp_path / "expected.sqlite3"
    build_database(committed_calls(read_recording(recording)), expected)
    assert content.differences(setup.database, expected) == []


# Plans


def test_points_are_read_as_they_are_written() -> None:
    assert parse_point("before-hook@3") == CrashPoint(3, "before-hook")
    assert parse_point("in-plugin@4:bytes=7") == CrashPoint(4, "in-plugin", size_bytes=7)
    assert parse_point("in-commit@5:step=done") == CrashPoint(5, "in-commit", step="done")
    assert parse_point("kill-plugin@6:delay-ms=20") == CrashPoint(
        6, "kill-plugin", when="sent", delay_s=0.02
    )


@pytest.mark.parametrize(
    "text", ["in-plugin", "nowhere@3", "before-hook@3:bytes=1", "in-commit@3:step=never", "@1"]
)
def test_points_nobody_knows_are_refused(text: str, setup: Setup) -> None:
    with pytest.raises(PlanError):
        parse_point(text)
    assert setup.run(*GENERATE, "--crash", text).code == Exit.USAGE


def test_one_process_crashes_once(setup: Setup) -> None:
    crashes = ("--crash", "before-hook@6", "--crash", "before-hook@7")
    assert setup.run(*GENERATE, *crashes).code == Exit.USAGE
