from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from simulator import calls
from simulator.calls import Call, Event, Run
from tests.simulator.simulated_node import CAPTURES

if TYPE_CHECKING:
    from pathlib import Path

CRASHED = CAPTURES / "crash" / "kill9-three-times.jsonl.xz"


def test_text_is_escaped_as_lightningd_does() -> None:
    assert calls.json_text('say "ä"\\\n\t\x01\x7f/') == (
        b'"say \\"\xc3\xa4\\"\\\\\\n\\t\\u0001\\u007F/"'
    )


def test_bytes_that_are_no_utf8_pass_as_they_are() -> None:
    assert calls.json_text(b"caf\xe9".decode("utf-8", "surrogateescape")) == b'"caf\xe9"'


def test_params_hold_version_and_writes_without_spaces() -> None:
    call = Call(0, 7, ["a", "it's"])
    assert calls.hook_params(call) == b'{"data_version":7,"writes":["a","it\'s"]}'


def test_only_pragmas_make_a_rider() -> None:
    assert Call(0, 1, ["PRAGMA foreign_keys = OFF;"]).rider
    assert Call(0, 1, [" pragma foreign_keys = ON;"]).rider
    assert not Call(0, 1, ["PRAGMA foreign_keys = OFF;", "UPDATE vars SET intval = 1"]).rider


def test_recording_keeps_order_and_counts_calls_only() -> None:
    items = list(calls.read_recording(CRASHED))
    assert items[0] == Event("start")
    assert [item.index for item in items if isinstance(item, Call)] == list(range(21))
    assert calls.has_events(CRASHED)
    assert not calls.has_events(CAPTURES / "small" / "payee.jsonl.xz")


def test_runs_say_what_each_process_did() -> None:
    assert calls.runs(calls.read_recording(CRASHED)) == [
        Run(0, 9, "in-plugin"),
        Run(9, 2, "in-plugin"),
        Run(11, 3, "after-answer"),
        Run(14, 7, None),
    ]


def test_killed_calls_are_not_committed() -> None:
    committed = calls.committed_calls(calls.read_recording(CRASHED))
    versions = [call.data_version for call in committed if not call.rider]
    assert versions == list(range(1, 17))


def test_an_event_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown event"):
        calls.runs([Call(0, 1, []), Event("kill9-somewhere")])


def test_variant_keeps_the_version_and_the_last_statement() -> None:
    call = Call(3, 8, ["INSERT INTO t VALUES (1)", "UPDATE vars SET intval = intval + 1"])
    changed = calls.variant(call, "x")
    assert (changed.index, changed.data_version) == (3, 8)
    assert [changed.writes[0], changed.writes[-1]] == list(call.writes)
    assert len(changed.writes) == 3


def test_plain_recordings_are_read_too(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    with file.open("wb") as lines:
        lines.write(b'{"t": 0, "data_version": 1, "writes": ["caf\xe9"]}\n')
        lines.write(json.dumps({"data_version": 2, "writes": []}).encode() + b"\n")
    first, second = calls.all_calls(calls.read_recording(file))
    assert first.writes == ["caf\udce9"]
    assert second.index == 1
