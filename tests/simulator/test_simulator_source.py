from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import apsw
import pytest

from simulator import content
from simulator.build import build_database
from simulator.calls import Call
from simulator.load import START_CALLS, START_VERSION, Load, generate
from simulator.source import CallQueue, SourceError, after_version, until_version

if TYPE_CHECKING:
    from pathlib import Path

OFF, ON = "PRAGMA foreign_keys = OFF;", "pragma foreign_keys=on"
CALLS = [
    Call(0, 1, ["A"]),
    Call(1, 1, [OFF]),
    Call(2, 2, ["B"]),
    Call(3, 2, [ON]),
    Call(4, 2, ["PRAGMA other = 1"]),
    Call(5, 3, ["C"]),
    Call(6, 3, [OFF]),
]


@pytest.mark.parametrize(
    ("version", "riders", "expected"),
    [
        (0, "needed", [0, 1, 2, 3, 4, 5, 6]),
        (1, "needed", [1, 2, 3, 4, 5, 6]),  # off is repeated: the next transaction needs it
        (1, "none", [2, 3, 4, 5, 6]),
        (2, "needed", [4, 5, 6]),  # on is what a process begins with
        (2, "all", [3, 4, 5, 6]),
        (2, "none", [5, 6]),
        (3, "needed", [6]),
        (3, "none", []),
    ],
)
def test_calls_go_on_where_the_database_stands(
    version: int, riders: str, expected: list[int]
) -> None:
    assert [call.index for call in after_version(CALLS, version, riders)] == expected


def test_a_database_ahead_of_the_calls_is_refused() -> None:
    with pytest.raises(SourceError, match="end at 3"):
        list(after_version(CALLS, 4, "needed"))


def test_a_database_before_the_calls_is_refused() -> None:
    with pytest.raises(SourceError, match="from data_version 0 to 1"):
        list(after_version(CALLS[2:], 0, "needed"))


def test_until_a_version_takes_its_riders() -> None:
    assert [call.index for call in until_version(CALLS, 2)] == [0, 1, 2, 3, 4]


def test_queue_keeps_the_last_calls_back() -> None:
    queue = CallQueue(CALLS)
    taken = []
    while (call := queue.take(keep=2)) is not None:
        taken.append(call.index)
    assert taken == [0, 1, 2, 3, 4]
    assert queue.take(keep=1) == CALLS[5]
    assert queue.take(keep=1) is None
    assert queue.take() == CALLS[6]
    assert queue.take() is None


LOADS = {
    "plain": Load(300),
    "another seed": Load(300, seed=2),
    "no blobs": Load(300, blob_bytes=0),
    "stray bytes": Load(300, stray_bytes=True),
    "grown": Load(3, database_mb=20),
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS.keys())
def test_a_load_is_the_same_each_time(load: Load, tmp_path: Path) -> None:
    calls = list(generate(load))
    assert calls == list(generate(load))
    assert [call.index for call in calls] == list(range(len(calls)))
    a, b = tmp_path / "a", tmp_path / "b"
    assert build_database(calls, a) == build_database(calls, b) == calls[-1].data_version
    assert content.differences(a, b) == []


def test_a_load_begins_as_a_new_node_does() -> None:
    start = list(generate(Load(0)))
    assert len(start) == START_CALLS
    assert [(call.data_version, call.rider) for call in start] == [
        (1, False),
        (1, True),
        (2, False),
        (2, True),
        (START_VERSION, False),
    ]


def test_seeds_are_other_nodes() -> None:
    assert [call.writes for call in generate(Load(20))] != [
        call.writes for call in generate(replace(Load(20), seed=9))
    ]


def test_a_load_holds_what_is_hard_to_carry() -> None:
    text = "".join(write for call in generate(Load(500, stray_bytes=True)) for write in call.writes)
    for needed in ("''", "\n", "⚡", "\udce9", "x'", "NULL", "DELETE", "UPDATE", "INSERT"):
        assert needed in text


def test_a_database_grows_to_its_size(tmp_path: Path) -> None:
    file = tmp_path / "grown"
    build_database(generate(Load(0, database_mb=20)), file)
    assert 20 <= file.stat().st_size / 2**20 < 22
    connection = apsw.Connection(str(file))
    counted = connection.execute("SELECT count(DISTINCT data) FROM bulk").fetchone()
    assert counted is not None
    assert int(counted[0]) > 5000
    connection.close()
