"""An answer that was lost is unknown: it is settled by the head, and nothing is stored twice."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from cln_backup.backends import create_backend, open_writer, place_at
from cln_backup.backends.postgres.writer import PostgresWriter
from cln_backup.model.errors import StorageError, Unreachable
from tests import postgres_cluster
from tests.histories import append, payment, started_node, told, told_by
from tests.postgres.appending import Appending, confirm_by, wait_until_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.events import Event
    from tests.postgres_cluster import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that a test may kill, and starts again."""
    with postgres_cluster.private() as made:
        yield made


@pytest.fixture
def url(server: Server, request: pytest.FixtureRequest) -> str:
    found = server.url(request.node.name.replace("[", ".").strip("]"), "deadline=60")
    create_backend(found, None)
    append(found, started_node())
    return found


def _restart(server: Server) -> None:
    server.kill()
    server.start()


def test_primary_killed_before_a_change_and_after_it(server: Server, url: str) -> None:
    with open_writer(url) as writer:
        writer.add_change(payment(4))
        server.kill()
        appending = Appending(writer, payment(5))
        server.start()
        appending.wait()
        _restart(server)
        writer.add_change(payment(6))
    assert told_by(url) == told([*started_node(), *(payment(n) for n in (4, 5, 6))])


def test_primary_killed_while_a_change_waits_to_be_stored(server: Server, url: str) -> None:
    with open_writer(url) as writer:
        with contextlib.closing(psycopg.connect(server.conninfo())) as other:
            other.execute("SELECT 1 FROM cln_backup.heads FOR UPDATE")
            appending = Appending(writer, payment(4))
            wait_until_at(server, "Lock")
            server.kill()
        server.start()
        appending.wait()
        writer.add_change(payment(5))
    assert told_by(url) == told([*started_node(), payment(4), payment(5)])


def test_primary_killed_when_a_change_is_stored_and_not_answered(server: Server, url: str) -> None:
    with open_writer(url) as writer:
        confirm_by(server, "nobody")
        try:
            appending = Appending(writer, payment(4))
            wait_until_at(server, "IPC")
            assert not appending.is_answered
            _restart(server)
            wait_until_at(server, "IPC")  # the look at the head, too, waits for the standby
            assert not appending.is_answered
        finally:
            confirm_by(server, "")
        appending.wait()
        writer.add_change(payment(5))
    assert told_by(url) == told([*started_node(), payment(4), payment(5)])


@pytest.mark.parametrize("how", ["cancel", "terminate"])
def test_superuser_who_ends_the_wait_for_a_standby_answers_nothing(
    server: Server, url: str, how: str
) -> None:
    """The server commits on its own disk then, and only warns."""
    with open_writer(url) as writer:
        confirm_by(server, "nobody")
        try:
            appending = Appending(writer, payment(4))
            pid = wait_until_at(server, "IPC")
            server.sql(f"SELECT pg_{how}_backend({pid})")
            wait_for_another(server, pid)
            assert not appending.is_answered
        finally:
            confirm_by(server, "")
        appending.wait()
        writer.add_change(payment(5))
    assert told_by(url) == told([*started_node(), payment(4), payment(5)])


def wait_for_another(server: Server, pid: int) -> None:
    while wait_until_at(server, "IPC") == pid:
        pass


def test_connection_that_is_ended_between_changes_is_made_again(server: Server, url: str) -> None:
    with open_writer(url) as writer:
        for version in range(4, 9):
            server.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'cln-backup'"
            )
            writer.add_change(payment(version))
    assert told_by(url) == told([*started_node(), *(payment(n) for n in range(4, 9))])


def test_change_waits_for_a_standby_no_longer_than_the_deadline(server: Server, url: str) -> None:
    events: list[Event] = []
    with place_at(url).open_writer(on_event=events.append) as writer:
        confirm_by(server, "nobody")
        try:
            with pytest.raises(Unreachable):
                writer.add_change(payment(4), timeout_s=4.5)
            with pytest.raises(StorageError):
                writer.add_change(payment(4))
        finally:
            confirm_by(server, "")
    assert any("synchronous standby" in event.text for event in events), events
    assert told_by(url)[:5] == told(started_node())


def test_database_that_lost_an_answered_change_is_refused(server: Server, url: str) -> None:
    """As after the promotion of a standby that lacks it, or a restore of the database."""
    node = url.partition("node=")[2].partition("&")[0]
    with open_writer(url) as writer:
        writer.add_change(payment(4))
        before = server.sql("SELECT * FROM cln_backup.heads WHERE node = %s", node)[0]
        writer.add_change(payment(5))
        server.sql(
            "UPDATE cln_backup.heads SET segment = %s, end_bytes = %s, seal = %s WHERE node = %s",
            *(*before[3:6], node),
        )
        server.sql(
            "DELETE FROM cln_backup.records WHERE backup = %s AND part = %s AND at >= %s",
            *(before[0], before[3], before[4]),
        )
        with pytest.raises(StorageError, match="lost changes"):
            writer.add_change(payment(6))
        with pytest.raises(StorageError):
            writer.add_change(payment(6))
    assert told_by(url) == told([*started_node(), payment(4)])


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_server_that_may_lose_answers_is_refused_unless_the_url_says_so(
    server: Server, url: str, setting: str
) -> None:
    server.sql(f"ALTER SYSTEM SET {setting} = off")
    try:
        server.sql("SELECT pg_reload_conf()")
        while server.sql(f"SHOW {setting}") != [("off",)]:
            pass
        with pytest.raises(StorageError, match=f"{setting} off"):
            open_writer(url)
        with place_at(f"{url}&unsafe=yes").open_reader() as reader:
            assert "not on stable storage" in (reader.durability or "")
    finally:
        server.sql(f"ALTER SYSTEM RESET {setting}")
        server.sql("SELECT pg_reload_conf()")


def test_role_whose_commits_do_not_wait_waits_here(server: Server, url: str) -> None:
    server.sql("ALTER ROLE node SET synchronous_commit = off")
    try:
        with place_at(url).open_reader() as reader:
            assert "synchronous_commit is off for this role" in (reader.durability or "")
        with open_writer(url) as writer:
            confirm_by(server, "nobody")
            appending = Appending(writer, payment(4))
            wait_until_at(server, "IPC")
            assert not appending.is_answered
            confirm_by(server, "")
            appending.wait()
    finally:
        confirm_by(server, "")
        server.sql("ALTER ROLE node RESET synchronous_commit")


def test_answer_to_a_connection_that_lost_its_settings_is_refused(url: str) -> None:
    """As by a pooler that gives the connections of the server to its clients in turn."""
    with open_writer(url) as writer:
        writer.add_change(payment(4))
        assert isinstance(writer, PostgresWriter)
        session = writer._link.session
        assert session is not None
        session.run("SET synchronous_commit = off", until=time.monotonic() + 60)
        for _ in range(2):
            with pytest.raises(StorageError):
                writer.add_change(payment(5))
    assert told_by(url)[:4] == told([*started_node(), payment(4)])[:4]
