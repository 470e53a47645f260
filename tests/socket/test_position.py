"""The position of a backup on a server is that of the backup itself."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.socket.session import ExtendedSession, open_session
from cln_backup.backends.socket.url import parse_socket_url
from cln_backup.compaction.compact import compact
from cln_backup.formats import digests
from cln_backup.model.change import Change
from cln_backup.model.errors import BadPacket, Discontinuity
from cln_backup.model.position import Position
from cln_backup.replay.kept import KeptReplica
from cln_backup.wire import packets as wire
from tests.histories import append, payment, started_node, wearing_payments
from tests.socket.serving import server_here

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def _position(url: str) -> Position:
    with open_reader(url) as reader:
        return reader.standing.position


@pytest.mark.parametrize("scheme", ["dir", "file"])
def test_position_over_a_server_is_that_of_the_backup(scheme: str, tmp_path: Path) -> None:
    """For readers and the writer, after changes, a drop and a compaction; none in `file:`."""
    here = f"{scheme}://{tmp_path}/backup"
    create_backend(here, None)
    append(here, started_node())
    with server_here() as server:
        there = server.add(here)
        with open_writer(there) as writer:
            for change in wearing_payments(4, 20):
                writer.add_change(change)
            assert writer.standing.position == _position(here) == _position(there)
            writer.rewind()
            assert writer.standing.position == _position(here) == _position(there)
            writer.add_change(payment(19, "another"))
        before = _position(there)
        assert before.version == 19
        assert (before.digest is None) == (scheme == "file")
        compact(there)
        after = _position(there)
        assert after == _position(here)
    # Folded changes still count in `dir:`, but not in `file:`.
    assert (after == before) == (scheme == "dir")


def test_reader_at_a_server_goes_on_from_a_position_after_a_compaction(tmp_path: Path) -> None:
    """Its numbers count what was merged, the stream begins with the snapshot."""
    here = f"dir://{tmp_path}/backup"
    create_backend(here, None)
    append(here, [*started_node(), *wearing_payments(4, 20)])
    with server_here() as server:
        there = server.add(here)
        compact(there)
        at = _position(there)
        append(there, [payment(20), payment(21)])
        with open_reader(there) as reader:
            assert [change.version for change in reader.stream_changes(after=at)] == [20, 21]


@contextlib.contextmanager
def _ten_payments(tmp_path: Path, scheme: str = "dir") -> Iterator[tuple[str, str]]:
    """The URL of a backup here and at a server: payments 4 to 13 after a node's start."""
    here = f"{scheme}://{tmp_path}/backup"
    create_backend(here, None)
    append(here, [*started_node(), *wearing_payments(4, 14)])
    with server_here() as server:
        yield here, server.add(here)


@contextlib.contextmanager
def _streams_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[wire.StreamStart]]:
    """Every STREAM that clients send within the block."""
    asked: list[wire.StreamStart] = []
    send = ExtendedSession.request_stream

    def remember(session: ExtendedSession, start: wire.StreamStart) -> None:
        asked.append(start)
        send(session, start)

    with monkeypatch.context() as patch:
        patch.setattr(ExtendedSession, "request_stream", remember)
        yield asked


@pytest.mark.parametrize("scheme", ["dir", "file"])
def test_only_what_follows_a_position_of_another_reader_is_sent(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart: the reader has not seen the position itself."""
    with _ten_payments(tmp_path, scheme) as (here, there):
        at = _position(here)
        append(there, [payment(14), payment(15)])
        with _streams_asked(monkeypatch) as asked, open_reader(there) as reader:
            got = [change.version for change in reader.stream_changes(after=at)]
            assert got == [14, 15]
            got = [change.version for change in reader.stream_changes(after=at, head=False)]
            assert got == [14]
        assert [start.after for start in asked] == [at, at]


def test_a_saved_position_whose_change_was_replaced_is_refused(tmp_path: Path) -> None:
    """Only its digest tells it apart: version and number of changes are the same."""
    with _ten_payments(tmp_path) as (here, there):
        dropped = _position(here)
        with open_writer(there) as writer:
            writer.rewind()
            writer.add_change(payment(13, "another"))
            writer.add_change(payment(14))
        with open_reader(there) as reader:
            assert reader.standing.position.changes == dropped.changes + 1
            with pytest.raises(Discontinuity, match="no longer in the backup"):
                list(reader.stream_changes(after=dropped))
            # The connection is still good.
            assert list(reader.stream_changes(reader.version))[-1].version == 14


def test_a_folded_position_is_refused_by_the_server(tmp_path: Path) -> None:
    with _ten_payments(tmp_path) as (here, there):
        folded = _position(here)
        append(there, [payment(14), payment(15)])
        compact(there)
        with open_reader(there) as reader, pytest.raises(Discontinuity, match="folded"):
            list(reader.stream_changes(after=folded))


def test_a_lost_connection_resumes_after_the_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Riders of the position's own version included; later changes are not in the stream."""
    with _ten_payments(tmp_path) as (here, there):
        at = _position(here)
        rider = Change(13, None, ("PRAGMA foreign_keys = OFF;",))
        append(there, [rider, rider, payment(14), payment(15)])
        with _streams_asked(monkeypatch) as asked, open_reader(there) as reader:
            got = []
            for change in reader.stream_changes(after=at):
                got.append(change.version)
                reader._link.close()  # type: ignore[attr-defined]
                if len(got) == 3:
                    append(there, [payment(16)])
            assert got == [13, 13, 14, 15]
        assert {start.after for start in asked} == {at}
        assert [(start.version, start.skip) for start in asked][:4] == [
            (13, 0), (13, 1), (13, 2), (14, 1),
        ]  # fmt: skip


def test_reader_that_reconnected_ends_at_its_own_view(tmp_path: Path) -> None:
    with _ten_payments(tmp_path) as (here, there):
        at = _position(here)
        append(there, [payment(14)])
        with open_reader(there) as reader:
            append(there, [payment(15)])
            reader._link.close()  # type: ignore[attr-defined]
            assert [change.version for change in reader.stream_changes(after=at)] == [14]
            assert [change.version for change in reader.stream_changes(13)] == [13, 14]
            assert list(reader.stream_changes(after=reader.standing.position)) == []
            assert reader.wait_for_more(0)
            assert [change.version for change in reader.stream_changes(after=at)] == [14, 15]


def test_server_of_an_older_release_is_sent_no_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would close the connection. The client then finds the place by itself."""
    with _ten_payments(tmp_path) as (here, there):
        at = _position(here)
        append(there, [payment(14), payment(15)])
        monkeypatch.setattr(wire, "FEATURES", wire.CAN_WAIT)
        with _streams_asked(monkeypatch) as asked, open_reader(there) as reader:
            got = [change.version for change in reader.stream_changes(after=at)]
            assert got == [14, 15]
        assert [start.after for start in asked] == [None]


def test_stream_of_a_client_of_an_older_release_is_served(tmp_path: Path) -> None:
    """Its STREAM has 49 bytes."""
    with _ten_payments(tmp_path) as (_, there):
        url = parse_socket_url(there)
        session = open_session(url, wire.Hello("read", url.node), 10)
        try:
            start = wire.StreamStart(12, 0, True, 0, digests.NO_DIGEST)
            assert len(wire.pack_stream_start(start)) == 49
            session.request_stream(start)
            versions = []
            while (packet := session.incoming()).type != wire.STREAM_END:
                payload = session.payload(packet, wire.MAX_CHANGE_BYTES)
                versions.append(wire.unpack_append(payload)[0])
            assert versions == [12, 13]
        finally:
            session.close()


def test_stream_packet_round_trip() -> None:
    for digest in (None, b"h" * 32):
        start = wire.StreamStart(7, 1, False, 5, b"d" * 32, Position(7, 1 << 40, digest))
        packed = wire.pack_stream_start(start)
        assert len(packed) == 93
        assert wire.unpack_stream_start(packed) == start
        for wrong in (packed[:-1], packed + b"\0", packed[:50]):
            with pytest.raises(BadPacket):
                wire.unpack_stream_start(wrong)


@pytest.mark.parametrize("scheme", ["dir", "file"])
def test_replica_continues_over_a_server_after_a_restart(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sent little more than what it lacks, whichever format the server has."""
    with _ten_payments(tmp_path, scheme) as (_, there):
        directory = str(tmp_path / "replica")
        with (
            contextlib.closing(KeptReplica.open(directory)) as replica,
            open_reader(there) as reader,
        ):
            assert replica.catch_up(reader)
        append(there, [payment(14), payment(15)])
        with (
            contextlib.closing(KeptReplica.open(directory)) as replica,
            open_reader(there) as reader,
            _streams_asked(monkeypatch) as asked,
        ):
            assert replica.catch_up(reader)
            assert replica.version == 15
            assert not replica.is_new
        assert [start.after is None for start in asked] == [False] * len(asked)
