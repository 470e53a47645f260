"""A synchronous standby: without it the node waits; promoted, it takes the place of the primary."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_writer, place_at
from cln_backup.backends.events import ignore
from cln_backup.model.errors import Discontinuity, StorageError
from cln_backup.operations.promote import promote
from tests import postgres_cluster
from tests.histories import append, payment, started_node, told, told_by
from tests.postgres.appending import Appending, confirm_by, wait_for, wait_until_at
from tests.postgres_cluster import Server, new_directory, url_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def _standby_of(primary: Server) -> Iterator[Server]:
    standby = Server(new_directory())
    try:
        standby.copy_from(primary, "s1")
        standby.start()
        yield standby
    finally:
        standby.kill()
        shutil.rmtree(standby.directory, ignore_errors=True)


def _promote(standby: Server) -> None:
    standby.sql("SELECT pg_promote(wait => false)")
    wait_for(lambda: standby.sql("SELECT pg_is_in_recovery()") == [(False,)])


def test_node_goes_on_at_the_promoted_standby_with_nothing_lost_or_doubled() -> None:
    with postgres_cluster.private() as primary, _standby_of(primary) as standby:
        url = url_of((primary, standby), "one", "deadline=60")
        create_backend(url, None)
        append(url, started_node())
        confirm_by(primary, "s1")
        with open_writer(url) as writer:
            writer.add_change(payment(4))
            standby.kill()
            appending = Appending(writer, payment(5))
            wait_until_at(primary, "IPC")
            assert not appending.is_answered  # the standby is gone: the node waits
            standby.start()
            appending.wait()
            writer.add_change(payment(6))
            primary.kill()
            appending = Appending(writer, payment(7))
            _promote(standby)
            appending.wait()
            writer.add_change(payment(8))
        expected = told([*started_node(), *(payment(n) for n in range(4, 9))])
        assert told_by(url) == expected
        with place_at(url).open_reader() as reader:
            assert "no synchronous standby" in (reader.durability or "")


def test_promoted_standby_that_lacks_an_answered_change_is_refused(tmp_path: Path) -> None:
    with postgres_cluster.private() as primary, _standby_of(primary) as standby:
        url = url_of((primary, standby), "two", "deadline=60")
        create_backend(url, None)
        append(url, started_node())
        with open_writer(url) as writer:
            writer.add_change(payment(4))
            at = "SELECT count(*) FROM cln_backup.records"
            wait_for(lambda: standby.sql(at) == primary.sql(at))
            standby.kill()
            writer.add_change(payment(5))  # answered by the primary alone
            primary.kill()
            standby.start()
            _promote(standby)
            with pytest.raises(StorageError, match="lost changes"):
                writer.add_change(payment(6))
        assert told_by(url) == told([*started_node(), payment(4)])
        # A standby of the node that was never there cannot know: its operator must.
        with pytest.raises(Discontinuity, match="Cannot tell whether the backup is the one"):
            promote(url, str(tmp_path), print, on_event=ignore)
