"""Peers that mean harm: what they try touches no backup and holds no node up."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.formats import digests, v1
from cln_backup.model.change import Change
from cln_backup.model.errors import BackupError, StorageError
from cln_backup.storage import scratch
from cln_backup.wire import packets as wire
from tests.histories import (
    SnapshotBytes,
    add_all,
    append,
    compacted,
    payment,
    payments,
    started_node,
    told,
    told_by,
    wearing_payments,
)
from tests.socket.serving import CLI, ServerProcess, server_here, server_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PATIENCE_S = 120.0


def _made(path: Path, name: str = "node") -> str:
    url = f"file://{path}/{name}.bkp"
    create_backend(url, None)
    append(url, started_node())
    return url


def _packet(kind: int, payload: bytes = b"") -> bytes:
    return wire.pack_head(kind, len(payload)) + payload


def _hello(role: str) -> bytes:
    return _packet(wire.METADATA, wire.pack_hello(wire.Hello(role))) + _packet(wire.REQ_METADATA)


def _send(port: int, data: bytes, greeting: bytes = b"") -> bytes:
    """Sends, and gives all that comes until the server closes.

    A greeting is answered before the data is sent: what is refused unread ends the connection
    with a reset, and a reset overtakes answers.
    """
    got = b""
    with socket.create_connection(("127.0.0.1", port)) as sock, contextlib.suppress(OSError):
        sock.settimeout(_PATIENCE_S)
        if greeting:
            sock.sendall(greeting)
            got += sock.recv(1 << 16)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while piece := sock.recv(1 << 16):
            got += piece
    return got


def _kinds(answers: bytes) -> list[int]:
    kinds = []
    while answers:
        kind, length = wire.unpack_head(answers[: wire.HEAD_BYTES])
        kinds.append(kind)
        answers = answers[wire.HEAD_BYTES + length :]
    return kinds


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with server_process(_made(tmp_path)) as server:
        yield server
        assert "bug in cln-backup" not in "".join(server.said)


def _peak_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        found = re.search(r"VmHWM:\s+(\d+) kB", file.read())
    assert found is not None
    return int(found[1])


# The greeting


@pytest.mark.parametrize(
    "text",
    [
        '{"role":' + "[" * 3000,
        '{"x":' + '{"x":' * 800,
        '{"role":"read","x":' + "[" * 1900 + "]" * 1900 + "}",
        '{"role":"read","token":"\\ud800"}',
        '{"role":"read","node":"../../../etc/passwd"}',
        '{"role":"read","node":"\\u0000"}',
        '{"role":"read","who":"\\u001b[2J\\n2026-01-01 ERROR forged"}',
        '{"role":"read","session":' + "9" * 3000 + "}",
        '{"role":"root"}',
        '{"role":null}',
        "null",
    ],
)
def test_greeting_made_to_confuse(server: ServerProcess, text: str) -> None:
    greeting = _packet(wire.METADATA, b"\x00\x00\x00\x02" + text.encode())
    _send(server.port, greeting + _packet(wire.REQ_METADATA))
    assert told_by(server.url) == told(started_node())
    assert server.terminate() == 0
    said = "".join(server.said)
    assert "passwd" not in said
    assert all(re.match(r"2\d{3}-", line) for line in said.splitlines())
    assert "ERROR forged" not in [line[24:] for line in said.splitlines()]


def test_name_of_a_node_leads_to_no_file(tmp_path: Path) -> None:
    other = _made(tmp_path, "other")
    (tmp_path / "nodes").write_text(f"a {_made(tmp_path)} {'0' * 64}\n")
    with server_process("--nodes", str(tmp_path / "nodes")) as server:
        for name in ("../other", "other", f"{tmp_path}/other", "..", "."):
            hello = wire.Hello("read", node=name)
            greeting = _packet(wire.METADATA, wire.pack_hello(hello)) + _packet(wire.REQ_METADATA)
            answer = _send(server.port, greeting)
            assert answer[0] == wire.REFUSED
            assert b"Unknown node or wrong token" in answer
    append(other, [payment(4)])


def test_unknown_name_is_answered_as_a_wrong_token(tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text(f"alice {_made(tmp_path)} {'0' * 64}\n")
    with server_process("--nodes", str(tmp_path / "nodes")) as server:
        answers = {
            _send(
                server.port,
                _packet(wire.METADATA, wire.pack_hello(wire.Hello("read", node, token)))
                + _packet(wire.REQ_METADATA),
            )
            for node in ("alice", "bob", "")
            for token in ("", "0" * 64, "x" * 3000)
        }
    assert len(answers) == 1


def test_one_session_on_many_connections_stores_a_change_once(server: ServerProcess) -> None:
    """As an attacker would who replays a writer's recorded packets."""
    change = payment(4)
    assert change.transaction is not None
    payload = v1.pack_transaction(change.transaction)
    digest = digests.transaction_digest(4, payload)
    hello = wire.Hello("write", session="ab" * 16, resume=True)
    replayed = (
        _packet(wire.METADATA, wire.pack_hello(hello))
        + _packet(wire.REQ_METADATA)
        + _packet(wire.APPEND, wire.pack_append(4, payload, digest, deflate=False))
    )
    threads = [threading.Thread(target=_send, args=(server.port, replayed)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told_by(server.url) == told([*started_node(), change])


# Bombs


def test_bombs_of_many_at_once_take_the_memory_of_two(server: ServerProcess) -> None:
    bomb = _packet(wire.CHANGE, bytes(4) + zlib.compress(bytes(400_000_000), 9))
    threads = [threading.Thread(target=_send, args=(server.port, bomb)) for _ in range(8)]
    for thread in threads:
        thread.start()
    with open_reader(server.url) as reader:
        assert told(reader.stream_changes()) == told(started_node())
    for thread in threads:
        thread.join()
    assert _peak_kib(server.process.pid) < 250_000
    append(server.url, [payment(4)])


@pytest.mark.parametrize("role", ["read", "create"])
def test_who_may_not_write_fills_no_disk(server: ServerProcess, role: str) -> None:
    with open_writer(server.url) as writer:
        begin = _packet(wire.SNAPSHOT_BEGIN, wire.pack_snapshot_begin(9, 8))
        piece = _packet(wire.SNAPSHOT_DATA, wire.pack_piece(b"12345678", deflate=False))
        large = _packet(wire.APPEND, bytes(1 << 20))
        for data in (begin + piece, large):
            kinds = _kinds(_send(server.port, data, _hello(role)))
            assert kinds[0] == wire.METADATA
            assert kinds[1:] in ([], [wire.REFUSED])
        writer.add_change(payment(4))
    assert told_by(server.url) == told([*started_node(), payment(4)])


def test_snapshot_for_which_there_is_no_room_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = _made(tmp_path)
    room = scratch.room_bytes

    def little_room(path: str, *, op: str) -> int:
        return min(500_000, room(path, op=op))

    with server_here() as server:
        there = server.add(url)
        with open_writer(there) as writer:
            monkeypatch.setattr(scratch, "room_bytes", little_room)
            large = SnapshotBytes(b"SQLite format 3\x00" + bytes(3_000_000))
            with pytest.raises(StorageError, match="nearly full"):
                writer.add_change(Change(9, large, None))
        append(there, [payment(4)])
    assert told_by(url) == told([*started_node(), payment(4)])


def test_disk_that_fills_up_while_a_snapshot_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = _made(tmp_path)
    looks = 0

    def less_and_less(_path: str, *, op: str) -> int:  # noqa: ARG001 - as the one in its place
        nonlocal looks
        looks += 1
        return 100_000_000 if looks < 3 else 0

    with server_here() as server:
        there = server.add(url)
        with open_writer(there) as writer:
            monkeypatch.setattr(scratch, "room_bytes", less_and_less)
            large = SnapshotBytes(b"SQLite format 3\x00" + bytes(40_000_000), 1 << 20)
            with pytest.raises(StorageError, match="nearly full"):
                writer.add_change(Change(9, large, None))
        monkeypatch.undo()
        append(there, [payment(4)])
    assert told_by(url) == told([*started_node(), payment(4)])


# Load


def test_compactions_asked_for_in_a_loop_hold_no_node_up(tmp_path: Path) -> None:
    with server_here() as server:
        alice, bob = server.add(_made(tmp_path, "a")), server.add(_made(tmp_path, "b"))
        append(alice, payments(4, 200))
        over = threading.Event()
        done = []

        def compact() -> None:
            while not over.is_set():
                with contextlib.suppress(BackupError), open_reader(alice) as backend:
                    done.append(compacted(backend))

        threads = [threading.Thread(target=compact) for _ in range(4)]
        for thread in threads:
            thread.start()
        with open_writer(alice) as one, open_writer(bob) as other:
            add_all(one, payments(200, 230))
            add_all(other, wearing_payments(4, 40))
        over.set()
        for thread in threads:
            thread.join()
        assert told_by(alice)[-1] == told(payments(229, 230))[0]
        assert told_by(bob)[-1] == told(wearing_payments(39, 40))[0]
        with open_reader(bob) as backend:
            figures = compacted(backend)
        assert figures["after"]["version_count"] == 2


def test_compaction_without_a_change_since_the_last_does_nothing(tmp_path: Path) -> None:
    url = _made(tmp_path)
    with server_here() as server:
        there = server.add(url)
        append(there, wearing_payments(4, 24))
        with open_reader(there) as backend:
            compacted(backend)
            inode = (tmp_path / "node.bkp").stat().st_ino
            figures = compacted(backend)
            assert figures["before"] == figures["after"]
            assert (tmp_path / "node.bkp").stat().st_ino == inode
        append(there, wearing_payments(24, 44))
        with open_reader(there) as backend:
            compacted(backend)
        assert (tmp_path / "node.bkp").stat().st_ino != inode


def test_compaction_with_more_than_a_thousand_files_open(tmp_path: Path) -> None:
    with server_here() as server, contextlib.ExitStack() as open_ones:
        there = server.add(_made(tmp_path))
        for _ in range(1100):
            open_ones.enter_context(open(os.devnull, "rb"))
        append(there, wearing_payments(4, 24))
        with open_reader(there) as backend:
            figures = compacted(backend)
        assert figures["after"]["version_count"] == 2


def test_questions_without_reading_the_answers(server: ServerProcess) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.settimeout(0.5)
        with contextlib.suppress(OSError):
            sock.sendall(_hello("read") + 1_000_000 * _packet(wire.REQ_METADATA))
        append(server.url, payments(4, 20))
    assert _peak_kib(server.process.pid) < 150_000


def test_connections_without_end_leave_the_server_alive(tmp_path: Path) -> None:
    """Out of file descriptors, it neither ends nor spins, and continues when there are some."""
    url = _made(tmp_path)
    child = (
        "import os, resource\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        f"os.execv({CLI!r}, ['backup-cli', 'server', {url!r}, '127.0.0.1:0'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", child],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    port = 0
    while not port:
        found = re.search(r"Waiting for connection on .*:(\d+)", process.stdout.readline())
        port = int(found[1]) if found else 0
    with contextlib.ExitStack() as open_ones:
        for _ in range(60):
            sock = socket.create_connection(("127.0.0.1", port))
            open_ones.enter_context(sock)
            sock.sendall(_hello("read")[:20])
        line = process.stdout.readline()
        while "Cannot accept a connection" not in line:
            line = process.stdout.readline()
        attempts = 0
        until = time.monotonic() + 2
        while time.monotonic() < until and attempts < 100:
            attempts += "Cannot accept" in process.stdout.readline()
        assert attempts < 100, "it spins"
    append(f"socket:127.0.0.1:{port}", [payment(4)])
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 0
    assert told_by(url) == told([*started_node(), payment(4)])


# Metrics


def test_metrics_that_are_asked_for_slowly_by_many(tmp_path: Path) -> None:
    with server_process("--metrics", "127.0.0.1:0", _made(tmp_path)) as server:
        found = re.search(r"http://127.0.0.1:(\d+)/metrics", "".join(server.said))
        assert found is not None
        threads_before = len(os.listdir(f"/proc/{server.process.pid}/task"))
        with contextlib.ExitStack() as open_ones:
            slow = [
                open_ones.enter_context(socket.create_connection(("127.0.0.1", int(found[1]))))
                for _ in range(100)
            ]
            for sock in slow:
                with contextlib.suppress(OSError):
                    sock.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
            append(server.url, payments(4, 20))
            assert len(os.listdir(f"/proc/{server.process.pid}/task")) < threads_before + 40
            for sock in slow:  # each is cut, whatever it sends
                sock.settimeout(_PATIENCE_S)
                with contextlib.suppress(OSError):
                    while sock.recv(1):
                        pass
        with urllib.request.urlopen(found[0]) as answer:  # noqa: S310 - it is http
            assert b"cln_backup_head_version" in answer.read()
