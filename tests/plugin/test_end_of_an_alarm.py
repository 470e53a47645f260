"""An alarm of an earlier start ends with a proof after it, whatever the clock was set to."""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.node.settings import Alarm
from cln_backup.plugin.following import REPLICA_NAME, Following
from cln_backup.plugin.replicator import Replicator
from cln_backup.replay.kept import KeptReplica
from tests.histories import append, first, payments, transaction
from tests.waiting import WAIT_S

if TYPE_CHECKING:
    from pathlib import Path

DAY_S = 86_400.0


@pytest.mark.parametrize("is_sound", [True, False], ids=["sound", "still wrong"])
@pytest.mark.parametrize("clock_s", [-DAY_S, DAY_S], ids=["ahead now", "set back since"])
def test_alarm_ends_only_if_the_backup_replays(
    clock_s: float, is_sound: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(url, [first(), *payments(2, 20)])
    with contextlib.closing(KeptReplica.open(REPLICA_NAME)) as replica, open_reader(url) as reader:
        replica.catch_up(reader)
    bad = transaction(20, "INSERT INTO payments (version) VALUES (3)")
    append(url, payments(20, 21) if is_sound else [bad])
    poll, said = select.poll(), list[str]()
    replicator = Replicator(os.getcwd(), said.append)
    replicator.note(alarm=Alarm("replay", "It does not replay.", time.time() + clock_s))
    following = Following(replicator, lambda _level, text: said.append(text), poll)
    with open_writer(url) as writer:
        replicator.backend = writer
        following.begin({})
        child = following._child._child
        assert child is not None
        until = time.monotonic() + WAIT_S
        while following.alarm is not None if is_sound else following._progress is None:
            assert time.monotonic() < until, said
            if poll.poll(100):
                following.go_on()
        following.close()
        child.wait(WAIT_S)
    assert (following.alarm is None) is is_sound
    assert (replicator.state().alarm is None) is is_sound
