"""A reader that waits at a server until a backup changes."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.socket.session import ExtendedSession, open_session
from cln_backup.backends.socket.url import parse_socket_url
from cln_backup.formats import digests
from cln_backup.server import certificate, extension
from cln_backup.wire import packets as wire
from tests.histories import append, payments, started_node, told, wearing_payments
from tests.socket.serving import ServerProcess, server_here, server_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cln_backup.server.right import Client
    from tests.socket.serving import ServerHere

_PATIENCE_S = 45.0
assert _PATIENCE_S < extension.MAX_WAIT_S, "a wait that nothing ends takes longer"


def _backup(tmp_path: Path, scheme: str = "dir") -> str:
    url = f"{scheme}://{tmp_path}/backup"
    create_backend(url, None)
    append(url, started_node())
    return url


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with server_process(_backup(tmp_path)) as running:
        yield running


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerHere]:
    """A server in this process, at which a wait that nothing ends takes an hour."""
    monkeypatch.setattr(extension, "MAX_WAIT_S", 3600.0)
    with server_here() as running:
        yield running


@contextlib.contextmanager
def _connected(url: str, role: str = "read") -> Iterator[ExtendedSession]:
    session = open_session(parse_socket_url(url), wire.Hello(role, parse_socket_url(url).node), 10)
    assert isinstance(session, ExtendedSession)
    try:
        yield session
    finally:
        session.close()


def _streamed(session: ExtendedSession, version: int) -> list[int]:
    """The versions of the changes that the reader is sent."""
    session.request_stream(wire.StreamStart(version, 0, True, 0, digests.NO_DIGEST))
    versions = []
    while (packet := session.incoming()).type != wire.STREAM_END:
        payload = session.payload(packet, wire.MAX_CHANGE_BYTES)
        if packet.type == wire.APPEND:
            versions.append(wire.unpack_append(payload)[0])
    return versions


@pytest.mark.parametrize("scheme", ["dir", "file"])
def test_a_change_wakes_a_reader_which_then_sees_it(tmp_path: Path, scheme: str) -> None:
    changes = payments(4, 7)
    with (
        server_process(_backup(tmp_path, scheme)) as server,
        _connected(server.url) as reader,
        ThreadPoolExecutor(1) as other,
        open_writer(server.url) as writer,
    ):
        started = reader.standing.version
        for change in changes:
            woken = other.submit(reader.wait, 3600.0)
            writer.add_change(change)
            assert woken.result(_PATIENCE_S)
            assert reader.standing.version == change.version
            assert reader.standing.digest == digests.digest_of_change(change)
            assert _streamed(reader, change.version)[-1] == change.version
        assert _streamed(reader, started + 1) == [change.version for change in changes]


def test_a_change_of_before_is_told_at_once(server: ServerProcess) -> None:
    with _connected(server.url) as reader:
        before = reader.standing
        changes = payments(4, 6)
        append(server.url, changes)
        reader.refresh()
        assert reader.standing == before
        with ThreadPoolExecutor(1) as other:
            assert other.submit(reader.wait, 3600.0).result(_PATIENCE_S)
        assert reader.standing.version == changes[-1].version


def test_a_dropped_change_wakes_a_reader(server: ServerProcess) -> None:
    with open_writer(server.url) as writer:
        writer.add_change(payments(4, 5)[0])
        with _connected(server.url) as reader, ThreadPoolExecutor(1) as other:
            before = reader.standing
            woken = other.submit(reader.wait, 3600.0)
            writer.rewind()
            assert woken.result(_PATIENCE_S)
            assert reader.standing.version == before.version - 1


def test_a_compaction_wakes_a_reader(here: ServerHere, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/backup"
    create_backend(url, None)
    append(url, [*started_node(), *wearing_payments(4, 40)])
    there = here.add(url)
    with (
        _connected(there) as reader,
        _connected(there) as other_reader,
        ThreadPoolExecutor(1) as other,
    ):
        before = reader.standing
        woken = other.submit(reader.wait, 3600.0)
        other_reader.compact(300)  # at the lowest priority
        assert woken.result(_PATIENCE_S)
        assert reader.standing.version_count < before.version_count
        assert reader.standing.digest == before.digest


def test_without_a_change_the_wait_ends_with_its_time(server: ServerProcess) -> None:
    with _connected(server.url) as reader:
        before = reader.standing
        assert reader.wait(0.05)
        assert reader.standing == before


def test_over_tls(here: ServerHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here.listener, "_tls", certificate.load(*certificate.make(str(tmp_path))))
    there = here.add(_backup(tmp_path))
    url = f"{there}&fingerprint={certificate.fingerprint(f'{tmp_path}/server.crt')}"
    with _connected(url) as reader, ThreadPoolExecutor(1) as other:
        woken = other.submit(reader.wait, 3600.0)
        append(url, changes := payments(4, 5))
        assert woken.result(_PATIENCE_S)
        assert reader.standing.version == changes[-1].version


def test_a_reader_that_leaves_is_not_waited_for(
    here: ServerHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = here.add(_backup(tmp_path))
    (node,) = here.nodes.values()
    left = threading.Event()
    leave = node.leave

    def leave_and_say(client: Client, received_bytes: int) -> None:
        leave(client, received_bytes)
        left.set()

    monkeypatch.setattr(node, "leave", leave_and_say)
    with _connected(url) as reader:
        reader._channel.send(wire.WAIT, wire.pack_wait(3600.0))
    assert left.wait(_PATIENCE_S)
    assert node.connections() == 0


def test_a_client_that_sends_more_ends_its_wait(here: ServerHere, tmp_path: Path) -> None:
    with _connected(here.add(_backup(tmp_path))) as reader:
        for _ in range(3):  # in one write: the last of them is read with the first
            reader._channel.queue(wire.WAIT, wire.pack_wait(3600.0))
        reader.refresh()
        for _ in range(3):
            reader._stood()


def test_the_server_stops_while_a_reader_waits(server: ServerProcess) -> None:
    with _connected(server.url) as reader, ThreadPoolExecutor(1) as other:
        ended = other.submit(reader.wait, 3600.0)
        assert server.terminate() == 0
        with contextlib.suppress(OSError):  # closed before or after an answer
            ended.result(_PATIENCE_S)
    assert "the server stops" not in "".join(server.said)  # said where a client holds it up


def test_only_a_reader_may_wait(server: ServerProcess) -> None:
    with _connected(server.url, "write") as writer, pytest.raises(ConnectionResetError):
        writer.wait(1.0)
    assert server.terminate() == 0
    assert "a WAIT, which only readers may send" in "".join(server.said)


def test_a_server_of_before_is_not_asked_to_wait(
    here: ServerHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = wire.pack_standing
    monkeypatch.setattr(wire, "pack_standing", lambda standing: pack(standing)[:78])
    with _connected(here.add(_backup(tmp_path))) as reader:
        version = reader.standing.version
        assert not reader.wait(3600.0)
        assert _streamed(reader, version) == [version]  # the connection is in order


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_reader_of_a_backup_is_woken(server: ServerProcess, *, interrupted: bool) -> None:
    change = payments(4, 5)[0]
    with open_reader(server.url) as reader, ThreadPoolExecutor(1) as other:
        before = reader.standing.position
        assert not reader.wait_for_more(0.05)
        woken = other.submit(reader.wait_for_more, 3600.0)
        if interrupted:
            server.kill()
            server.start()
        append(server.url, [change])
        assert woken.result(_PATIENCE_S)
        assert reader.version == change.version
        assert told(reader.stream_changes(after=before)) == told([change])
        assert not reader.wait_for_more(0.05)


def test_the_reader_asks_a_server_that_cannot_wait(
    here: ServerHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = wire.pack_standing
    monkeypatch.setattr(wire, "pack_standing", lambda standing: pack(standing)[:78])
    url = here.add(_backup(tmp_path))
    with open_reader(url) as reader, ThreadPoolExecutor(1) as other:
        woken = other.submit(reader.wait_for_more, 3600.0)
        append(url, payments(4, 5))
        assert woken.result(_PATIENCE_S)
        assert reader.version == 4


def test_what_was_added_to_the_metadata_comes_after_what_clients_of_before_read() -> None:
    standing = wire.Standing(7, 6, 9, None, False, 5, 4, 3, bytes(range(32)))
    old = wire.pack_standing(standing)[:78]
    new = wire.pack_standing(standing._replace(features=1, changes=12, history=b"h" * 32))
    assert new[:78] == old
    assert new[78:] == b"\0\0\0\1" + bytes(7) + b"\x0c" + b"h" * 32
    assert wire.unpack_standing(old) == (2, standing)
    assert wire.unpack_standing(new + b"more") == wire.unpack_standing(new)
    proven = standing._replace(features=4, changes=12, proven_version=7, proven_at_ms=8)
    packed = wire.pack_standing(proven)
    assert packed[78 + 44 :] == b"\0\0\0\x07" + bytes(7) + b"\x08"
    assert wire.unpack_standing(packed + b"more") == (2, proven)
