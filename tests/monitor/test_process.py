"""The monitor as a process of its own: what the end of its parent must not do to it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cln_backup.monitor.messages import Receivers, Start, Told
from cln_backup.monitor.state import NodeState
from cln_backup.process.channel import Message, size_of
from cln_backup.process.child import Child
from tests.monitor.receiver import HttpReceiver
from tests.waiting import WAIT_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def _start(directory: Path, receivers: Receivers) -> Start:
    nodes = {"": NodeState(at=time.time(), protected=True)}
    return Start("host bitcoin", str(directory), receivers, nodes)


@contextmanager
def _monitor(start: Start) -> Iterator[Child[Message]]:
    child = Child("cln_backup.monitor.process", start, (Message,), work="sends alarms")
    try:
        yield child
    finally:
        child.wait(WAIT_S)


def test_full_disk_that_halts_the_node_does_not_end_its_alarm(tmp_path: Path) -> None:
    (tmp_path / "backup.alarms").mkdir()  # so it cannot be written, and no log takes the warning
    with HttpReceiver() as receiver:
        receivers = Receivers(webhooks=(receiver.url,))
        with _monitor(_start(tmp_path, receivers)) as child:
            child.close()
        (alarm,) = receiver.wait_for_posts(1)
    assert alarm["code"] == "node-ended"


def test_stopped_monitor_never_makes_its_parent_wait(tmp_path: Path) -> None:
    with _monitor(_start(tmp_path, Receivers())) as child:
        os.kill(child.pid, signal.SIGSTOP)
        sent = []
        try:
            for length in (*range(1, 9_000, 500), *(900_000,) * 3, *(2_100,) * 40, 40_000):
                told = Told({"": NodeState(at=0.0, halted="x" * length)})
                if child.has_room_for(told):
                    unread = child.unread_bytes()
                    os.set_blocking(child._outbox.fileno(), False)  # an error, if it had to wait
                    child.send(told)
                    os.set_blocking(child._outbox.fileno(), True)
                    assert child.unread_bytes() - unread == size_of(told)
                    sent.append(length)
            assert 1 in sent
            assert 900_000 not in sent
        finally:
            os.kill(child.pid, signal.SIGCONT)
            child.close()
