"""How many connections there may be, how long they may be quiet, and how slow."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.socket.token_file import create_token
from cln_backup.model.errors import Unreachable
from cln_backup.server import certificate, conversation, listener
from cln_backup.server.admission import why_refused
from cln_backup.server.node import MAX_NODE_CONNECTIONS
from cln_backup.wire import packets as wire
from tests.histories import (
    add_all,
    append,
    compacted,
    payment,
    payments,
    started_node,
    told,
    told_by,
)
from tests.socket.serving import server_here, server_process

if TYPE_CHECKING:
    from pathlib import Path

_PATIENCE_S = 120.0


def _made(path: Path, name: str = "node") -> str:
    url = f"file://{path}/{name}.bkp"
    create_backend(url, None)
    append(url, started_node())
    return url


def _connect(port: int, host: str = "127.0.0.1") -> socket.socket:
    sock = socket.create_connection((host, port))
    sock.settimeout(_PATIENCE_S)
    return sock


def _is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def _packet(kind: int, payload: bytes) -> bytes:
    return wire.pack_head(kind, len(payload)) + payload


_GREETING = _packet(wire.METADATA, wire.pack_hello(wire.Hello("read"))) + _packet(4, b"")


# How many


def test_strangers_take_a_quarter_of_the_connections_and_no_more(tmp_path: Path) -> None:
    with (
        server_process("--max-connections", "40", _made(tmp_path)) as server,
        open_writer(server.url) as writer,
        contextlib.ExitStack() as open_ones,
    ):
        strangers = [open_ones.enter_context(_connect(server.port)) for _ in range(10)]
        with _connect(server.port) as one_more:
            assert _is_closed(one_more)
        add_all(writer, payments(4, 6))
        strangers.pop().close()
        assert told_by(server.url)[-1] == told(payments(5, 6))[0]
    assert "too many unauthenticated connections: 10 are open" in "".join(server.said)


def test_no_more_connections_than_allowed(tmp_path: Path) -> None:
    with server_process("--max-connections", "12", _made(tmp_path)) as server:
        with contextlib.ExitStack() as open_ones:
            readers = [open_ones.enter_context(open_reader(server.url)) for _ in range(12)]
            with _connect(server.port) as one_more:
                assert _is_closed(one_more)
            assert [told(reader.stream_changes()) for reader in readers] == 12 * [
                told(started_node())
            ]
        append(server.url, [payment(4)])
    assert "too many connections: 12 are open" in "".join(server.said)


def test_one_node_cannot_take_the_connections_of_another(tmp_path: Path) -> None:
    hashes = {name: create_token(str(tmp_path / f"{name}.token")) for name in ("alice", "bob")}
    lines = [f"{name} {_made(tmp_path, name)} {hashes[name]}" for name in hashes]
    (tmp_path / "nodes").write_text("\n".join(lines))
    with server_process("--nodes", str(tmp_path / "nodes")) as server:
        alice, bob = (
            f"{server.url}?node={name}&token-file={tmp_path}/{name}.token" for name in hashes
        )
        with contextlib.ExitStack() as open_ones:
            for _ in range(MAX_NODE_CONNECTIONS):
                open_ones.enter_context(open_reader(alice))
            with pytest.raises(Unreachable):
                open_reader(f"{alice}&deadline=1")
            append(bob, [payment(4)])
        append(alice, [payment(4)])


@pytest.mark.parametrize(
    ("host", "strangers", "refused"),
    [
        ("192.0.2.1", ["192.0.2.1"] * 63, False),
        ("192.0.2.1", ["192.0.2.1"] * 64, True),
        ("192.0.2.2", ["192.0.2.1"] * 64, False),
        ("::ffff:192.0.2.1", ["192.0.2.1"] * 64, True),
        ("::ffff:192.0.2.2", ["::ffff:192.0.2.1"] * 64, False),
        ("2001:db8::1", ["2001:db8::2"] * 64, True),
        ("2001:db8:0:1::1", ["2001:db8::2"] * 64, False),
        ("127.0.0.1", ["127.0.0.1"] * 255, False),
        ("::ffff:127.0.0.1", ["::1"] * 255, False),
        ("127.0.0.1", ["127.0.0.1"] * 256, True),
    ],
)
def test_strangers_of_one_network(host: str, strangers: list[str], refused: bool) -> None:
    assert (why_refused(host, strangers, len(strangers), 1024) is not None) is refused


def test_all_connections_taken() -> None:
    assert why_refused("192.0.2.1", [], 1023, 1024) is None
    assert why_refused("192.0.2.1", [], 1024, 1024) is not None


# How slow


def _drip(sock: socket.socket, data: bytes, pause_s: float) -> bool:
    """Sends byte after byte until the other side closes; returns whether it did."""
    until = time.monotonic() + _PATIENCE_S
    for sign in data:
        try:
            sock.sendall(bytes([sign]))
            sock.settimeout(pause_s)
            if sock.recv(1 << 16) == b"":
                return True
        except TimeoutError:
            pass
        except OSError:
            return True
        if time.monotonic() > until:
            return False
    return False


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of this process waits less long for a greeting."""
    for module in (conversation, listener):
        monkeypatch.setattr(module, "GREETING_S", 2.0)


@pytest.mark.usefixtures("_hasty")
def test_greeting_that_comes_byte_by_byte_is_cut_and_holds_nobody_up(tmp_path: Path) -> None:
    closed: list[bool] = []
    with server_here() as server:
        there = server.add(_made(tmp_path))

        def greet_slowly() -> None:
            with _connect(server.address.port) as sock:
                closed.append(_drip(sock, _packet(wire.METADATA, bytes(4000)), 0.2))

        def say_nothing() -> None:
            with _connect(server.address.port) as sock:
                closed.append(_is_closed(sock))

        threads = [threading.Thread(target=target) for target in 4 * (greet_slowly, say_nothing)]
        for thread in threads:
            thread.start()
        append(there, payments(4, 20))
        for thread in threads:
            thread.join()
    assert closed == 8 * [True]


@pytest.mark.usefixtures("_hasty")
def test_tls_handshake_that_comes_byte_by_byte_is_cut_and_holds_nobody_up(tmp_path: Path) -> None:
    url = _made(tmp_path)
    client = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(*client).do_handshake()
    hello = client[1].read()
    closed: list[bool] = []
    tls = certificate.load(*certificate.make(str(tmp_path / "tls")))
    with server_here(tls=tls) as server:
        there = f"{server.add(url)}&tls=yes&pin={tmp_path}/pin"

        def shake_slowly() -> None:
            with _connect(server.address.port) as sock:
                closed.append(_drip(sock, hello, 0.2))

        threads = [threading.Thread(target=shake_slowly) for _ in range(8)]
        for thread in threads:
            thread.start()
        append(there, payments(4, 20))
        for thread in threads:
            thread.join()
    assert closed == 8 * [True]


def test_packet_that_comes_too_slowly_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_STALL_S", 0.5)
    with server_here() as server:
        there = server.add(_made(tmp_path))
        with _connect(server.address.port) as sock:
            sock.sendall(_GREETING)
            assert sock.recv(1) == bytes([wire.METADATA])
            sock.recv(1 << 16)
            assert _drip(sock, _packet(wire.STREAM, bytes(1000)), 0.05)
        append(there, [payment(4)])


def test_quiet_reader_is_closed_and_a_quiet_writer_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "IDLE_S", 0.3)
    with server_here() as server:
        there = server.add(_made(tmp_path))
        with (
            open_writer(there) as writer,
            _connect(server.address.port) as reader,
            _connect(server.address.port) as plain,
        ):
            used = writer._link.session  # type: ignore[attr-defined]
            reader.sendall(_GREETING)
            plain.sendall(_packet(wire.REQ_METADATA, b""))
            for sock in (reader, plain):
                assert sock.recv(1) == bytes([wire.METADATA])
                while sock.recv(1 << 16):
                    pass
            writer.add_change(payment(4))
            assert writer._link.session is used  # type: ignore[attr-defined]


def test_slow_reader_of_a_restore_holds_no_writer_up(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    history = [*started_node(), *(payment(n, 20_000 * chr(97 + n % 26)) for n in range(4, 300))]
    append(url, history)
    with server_process(url) as server:
        with _connect(server.port) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
            slow.sendall(_GREETING + _packet(wire.STREAM, bytes(8) + b"\x01" + bytes(40)))
            assert slow.recv(1) == bytes([wire.METADATA])
            with open_writer(server.url) as writer:
                add_all(writer, payments(300, 320))
                with open_reader(server.url) as reader:
                    compacted(reader)
                add_all(writer, payments(320, 330))
            got = hashlib.sha256()
            for _ in range(50):
                got.update(slow.recv(1000))
                time.sleep(0.01)
        assert told_by(server.url)[-1] == told(payments(329, 330))[0]
        assert server.terminate() == 0


def test_readers_that_stand_still_do_not_keep_the_server_from_stopping(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(url, [*started_node(), *(payment(n, 60_000 * "x") for n in range(4, 200))])
    with server_process(url) as server, contextlib.ExitStack() as open_ones:
        for _ in range(6):
            sock = open_ones.enter_context(_connect(server.port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
            sock.sendall(_GREETING + _packet(wire.STREAM, bytes(8) + b"\x01" + bytes(40)))
            assert sock.recv(1) == bytes([wire.METADATA])
        assert server.terminate() == 0
