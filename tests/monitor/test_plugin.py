"""Alarms of a simulated node: what ends it badly is told, and a stop in order is not."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.monitor.receiver import HttpReceiver
from tests.plugin.home import CAPTURES, Home, processes_of
from tests.waiting import WAIT_S, wait_for, wait_for_process_in, wait_until_ended

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))
_MONITOR = "cln_backup.monitor.process"


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    with HttpReceiver() as started:
        yield started


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path, "dir")
    home.init()
    return home


def _options(receiver: HttpReceiver) -> tuple[str, ...]:
    return (
        *("--option", f"backup-alarm-webhook={receiver.url}/hook"),
        *("--option", f"backup-alarm-ping={receiver.url}/ping"),
    )


def _bad(receiver: HttpReceiver) -> list[Any]:
    return [content for _, content in receiver.posts if content["level"] == "bad"]


def _codes(receiver: HttpReceiver, home: Home) -> list[str]:
    found = wait_for(lambda: _bad(receiver), missing=home.log)
    return [content["code"] for content in found]


def test_node_that_is_well_pings_and_its_stop_is_no_alarm(
    home: Home, receiver: HttpReceiver
) -> None:
    node = home.start(*_ROUTER, "--calls", "50", "--hold", *_options(receiver))
    wait_for(lambda: receiver.gets, missing=home.log)
    monitor = wait_for_process_in(home.directory, _MONITOR)
    home.call("stop")
    home.end(node)
    wait_until_ended(monitor)
    assert receiver.gets == ["/ping"]
    assert _bad(receiver) == []
    assert receiver.url not in home.log()  # it may have a secret


def test_halt_is_told_with_its_reason(home: Home, receiver: HttpReceiver) -> None:
    node = home.start(*_ROUTER, "--rate", "20", "--hold", *_options(receiver))
    wait_for(lambda: receiver.gets, missing=home.log)
    home.backup.rename(home.base / "elsewhere")
    home.end(node, code=None)
    (alarm,) = wait_for(lambda: _bad(receiver), missing=home.log)
    assert alarm["code"] == "halted"
    assert "was moved, removed or replaced" in alarm["text"]
    assert alarm["source"].endswith(" regtest")


@pytest.mark.parametrize("victim", ["worker", "node"])
def test_end_without_a_stop_is_told(home: Home, receiver: HttpReceiver, victim: str) -> None:
    node = home.start(*_ROUTER, "--rate", "20", "--hold", *_options(receiver))
    wait_for(lambda: receiver.gets, missing=home.log)
    worker, _ = processes_of(node.pid)
    os.kill(worker if victim == "worker" else node.pid, signal.SIGKILL)
    assert _codes(receiver, home) == ["node-ended"]
    node.communicate(timeout=WAIT_S)


def test_killed_and_stopped_monitors_delay_nothing(home: Home, receiver: HttpReceiver) -> None:
    node = home.start(*_ROUTER, "--calls", "50", "--hold", *_options(receiver))
    first = wait_for_process_in(home.directory, _MONITOR)
    os.kill(first, signal.SIGKILL)
    wait_until_ended(first)
    second = wait_for_process_in(home.directory, _MONITOR)
    os.kill(second, signal.SIGSTOP)
    home.wait_for_calls(50)
    home.call("stop")
    home.end(node)
    os.kill(second, signal.SIGKILL)


def test_invalid_receiver_is_said_and_the_node_runs(home: Home) -> None:
    home.run(*_ROUTER, "--calls", "5", "--option", "backup-alarm-webhook=ftp://secret@host/")
    assert "No alarms are sent: A URL for alarms must begin with http" in home.log()
    assert "secret" not in home.log()


def test_command_is_run_for_a_halt(home: Home, receiver: HttpReceiver, tmp_path: Path) -> None:
    told = tmp_path / "told"
    command = f"{sys.executable} -c \"import sys; open('{told}', 'a').write(sys.stdin.read())\""
    option = ("--option", f"backup-alarm-command={command}")
    node = home.start(*_ROUTER, "--rate", "20", "--hold", *option, *_options(receiver))
    wait_for(lambda: receiver.gets, missing=home.log)
    os.kill(processes_of(node.pid)[0], signal.SIGKILL)
    wait_for(lambda: told.exists() and told.read_text().endswith("}"), missing=home.log)
    assert json.loads(told.read_text())["code"] == "node-ended"
    node.communicate(timeout=WAIT_S)
