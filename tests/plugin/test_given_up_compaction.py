"""Late answers of the follower, about a compaction that was given up before another one began."""

from __future__ import annotations

import os
import select
import signal
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.operations.restore import restore
from cln_backup.plugin.compact_command import CompactCommand
from cln_backup.plugin.following import Following
from cln_backup.plugin.replicator import Replicator
from cln_backup.server.preparing import Preparing
from cln_backup.server.served import Served
from tests.disasters.places import KINDS, url_in
from tests.histories import append, assert_same_database, build_database, first, wearing_payments
from tests.socket.followers import followed, wait_until_proven
from tests.waiting import WAIT_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HISTORY = [first(), *wearing_payments(2, 150)]
MORE = wearing_payments(150, 160)
FORCE = msgspec.Raw(b'{"force": true}')
DROPPED = "about a compaction that was given up"


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A backup, in a directory of its own; this process is in the node's."""
    for name in ("backups/backup", "node"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "node")
    made = url_in(tmp_path / "backups" / "backup", request.param)
    create_backend(made, None)
    append(made, HISTORY)
    return made


def _require_all_in(url: str, tmp_path: Path) -> None:
    with open_reader(url) as reader:
        assert reader.standing.version_count == 2 + len(MORE), "it was not compacted"
        restore(reader, str(tmp_path / "restored.sqlite3"))
    expected = build_database(tmp_path / "expected.sqlite3", [*HISTORY, *MORE])
    assert_same_database(tmp_path / "restored.sqlite3", expected)


def test_plugin_drops_them(url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    poll = select.poll()
    replicator = Replicator(os.getcwd(), said.append)
    following = Following(replicator, lambda _level, text: said.append(text), poll)
    command = CompactCommand(replicator, following, lambda _level, text: said.append(text), poll)

    def go_on_until(is_reached: Callable[[], bool]) -> None:
        until = time.monotonic() + WAIT_S
        while not is_reached():
            assert time.monotonic() < until, said
            for fd, _ in poll.poll(100):
                (following if following.is_at(fd) else command).go_on()

    with open_writer(url) as writer:
        replicator.backend = writer
        following.begin({})
        go_on_until(lambda: following.status()["follower"] == "following")
        child = following._child._child
        assert child is not None
        os.kill(child.pid, signal.SIGSTOP)
        command.start(b"1", writer, FORCE)
        command.close()
        command.forget_request()
        command.start(b"2", writer, FORCE)
        os.kill(child.pid, signal.SIGCONT)
        go_on_until(lambda: not command.is_under_way())
        for change in MORE:
            writer.add_change(change)
        go_on_until(lambda: following.status()["proven_version"] == writer.version)
        following.close()
        child.wait(WAIT_S)
    told = [line for line in said if DROPPED in line or line.startswith("Compaction f")]
    assert [line.partition(":")[0] for line in told] == [told[0], "Compaction finished"], told
    assert '"id":2' in capfd.readouterr().out.replace(" ", "")
    _require_all_in(url, tmp_path)


def test_server_drops_them(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "cln_backup.server")
    node = Served("node", url, None)
    node.open()
    with followed({"node": node}, str(tmp_path / "replicas")) as following:
        wait_until_proven(node, HISTORY[-1].version)
        assert following._child is not None
        pid = following._child.pid
        writer = node._opened()
        os.kill(pid, signal.SIGSTOP)
        with Preparing(writer, node.follower()):
            pass
        with Preparing(writer, node.follower()) as wanted:
            os.kill(pid, signal.SIGCONT)
            while wanted.wait()() is None:
                pass
        for change in MORE:
            writer.add_change(change)
        wait_until_proven(node, MORE[-1].version)
        assert following._child is not None
        assert following._child.pid == pid
    node.close()
    assert sum(DROPPED in record.getMessage() for record in caplog.records) == 1
    _require_all_in(url, tmp_path)
