"""A node that writes thousands of changes keeps a small backup: it compacts by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.dir.upkeep import expired
from cln_backup.backends.inventory import space_bytes
from cln_backup.backends.ticket import MoreNeeded
from cln_backup.compaction.facts import facts_of
from cln_backup.compaction.from_replica import prepare
from cln_backup.compaction.policy import Limits, due, space_bound_bytes
from cln_backup.operations.restore import restore
from cln_backup.replay.kept import KeptReplica
from cln_backup.storage.local_objects import LocalObjects
from tests.disasters.places import KINDS, url_in
from tests.histories import (
    add_all,
    assert_same_database,
    build_database,
    first,
    wearing_payments,
)
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cln_backup.backends.contract import Writer
    from cln_backup.backends.ticket import Ticket

_CHANGES = 2_000
_BURST = 100
_AT_ONCE_BYTES = 2 << 20
"""The newest segment and the one that is prepared for later have their whole size at once."""
_LIMITS = Limits(least_log_bytes=1 << 20)


def _at_once(work: Callable[[], Ticket]) -> Ticket:
    return work()


def _compact(writer: Writer, replica: KeptReplica, url: str) -> None:
    """As the plugin and its follower do, one after the other."""
    with open_reader(url) as reader:
        prepared = prepare(replica, reader, _at_once)
        assert prepared is not None
        ticket = prepared.ticket
        while isinstance(writer.take_over(ticket), MoreNeeded):
            ticket = reader.prepare_more(ticket)
        reader.wait_for_more(0)
        replica.rebase(prepared.base, reader)


@pytest.mark.parametrize(("kind", "keep"), [*((kind, 0) for kind in KINDS), ("dir", 1)])
def test_backup_stays_under_its_bound(kind: str, keep: int, tmp_path: Path) -> None:
    place = tmp_path / "backup"
    place.mkdir()
    url = url_in(place, kind)
    if keep:
        url += f"?keep={keep}"
    create_backend(url, None)
    history = [first(), *wearing_payments(2, _CHANGES)]
    replica = KeptReplica.open(str(tmp_path / "replica"))
    replica.is_new = False
    compactions = logged = most = 0
    with open_writer(url) as writer:
        for start in range(0, _CHANGES, _BURST):
            before = writer.generation()
            add_all(writer, history[start : start + _BURST])
            facts, after = facts_of(writer, 0.0, None), writer.generation()
            assert facts is not None
            assert before is not None
            assert after is not None
            logged += after.log_bytes - before.log_bytes
            if due(facts, _LIMITS) is not None:
                _compact(writer, replica, url)
                compactions += 1
                if kind != "file":  # a child process removes them, which may take a moment
                    wait_until(
                        lambda: not expired(LocalObjects(str(place)), keep, 0),
                        "Expired files are still there.",
                    )
                again = facts_of(writer, 0.0, None)
                assert again is not None
                assert due(again, _LIMITS) is None, "nothing is due right after a compaction"
            most = max(most, space_bytes([str(place)]))
            assert most <= space_bound_bytes(facts, _LIMITS, writer.place.keeps)
    assert not replica.is_new, "the history was never replayed again"
    replica.close()
    assert compactions > 2
    assert most < logged * (1 + keep) / 2 + _AT_ONCE_BYTES
    target = tmp_path / "restored.sqlite3"
    with open_reader(url) as backend:
        restore(backend, str(target))
    assert_same_database(target, build_database(tmp_path / "expected.sqlite3", history))
