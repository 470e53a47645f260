"""The server as a process, and what it keeps out."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.socket.place import take_over
from cln_backup.backends.socket.token_file import create_token
from cln_backup.model.change import Change
from cln_backup.model.errors import (
    AccessDenied,
    AlreadyExists,
    BackupError,
    BadPacket,
    BadUrl,
    Damaged,
    Unreachable,
    WriterConflict,
)
from cln_backup.server import certificate
from cln_backup.wire import packets as wire
from tests import programs
from tests.histories import (
    SnapshotBytes,
    add_all,
    append,
    payment,
    payments,
    started_node,
    told,
    told_by,
    wearing_payments,
)
from tests.socket.proxies import Socks5
from tests.socket.serving import CLI, ServerProcess, server_here, server_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def _made(path: Path, name: str = "node") -> str:
    url = f"file://{path}/{name}.bkp"
    create_backend(url, None)
    return url


def _cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return programs.run(*arguments)


# Ways to the server


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_addresses_of_each_kind(tmp_path: Path, host: str) -> None:
    with server_process(_made(tmp_path), host=host) as server:
        append(server.url, started_node())
        assert told_by(server.url) == told(started_node())


def test_every_address_of_both_families(tmp_path: Path) -> None:
    with server_process("--insecure", _made(tmp_path), host="::") as server:
        append(f"socket:127.0.0.1:{server.port}", started_node())
        assert told_by(f"socket:[::1]:{server.port}") == told(started_node())


@pytest.mark.parametrize("name", ["127.0.0.1", "::1", "backupxyz.onion"])
def test_through_a_socks5_proxy_which_resolves_the_name(tmp_path: Path, name: str) -> None:
    with server_here() as server:
        there = server.add(_made(tmp_path))
        proxy = Socks5({name: server.address.port})
        shown = f"[{name}]" if ":" in name else name
        url = f"socket:{shown}:{server.address.port}?{there.partition('?')[2]}"
        append(f"{url}&proxy=socks5:127.0.0.1:{proxy.port}", started_node())
        proxy.close()
        assert told_by(there) == told(started_node())
        assert {asked[1] for asked in proxy.asked} == {name}
        assert {asked[0] for asked in proxy.asked} == {
            3 if "onion" in name else 1 + 3 * (":" in name)
        }


def test_proxy_that_cannot_connect_says_why() -> None:
    proxy = Socks5({})
    url = f"socket:nowhere.onion:1?proxy=socks5:127.0.0.1:{proxy.port}&deadline=1"
    with pytest.raises(Unreachable, match=r"through the proxy .*host unreachable"):
        open_reader(url)
    proxy.close()


# Commands


def test_every_command_works_on_a_server_as_on_a_file(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    with server_process(url) as server:
        done = _cli("init", server.url)
        assert done.returncode == 0, done.stderr
        append(server.url, [*started_node(), *wearing_payments(4, 30)])
        assert _cli("init", server.url).returncode == AlreadyExists.exit_code
        status = json.loads(_cli("status", "--json", server.url).stdout)
        assert (status["version"], status["version_count"]) == (29, 31)
        assert status["backupsize"] == (tmp_path / "node.bkp").stat().st_size
        assert "Good up to data version 29" in _cli("verify", server.url).stdout
        lines = _cli("log", "--json", "--from", "28", server.url).stdout.splitlines()
        assert [json.loads(line)["version"] for line in lines] == [28, 29]
        done = _cli("restore", server.url, str(tmp_path / "restored.sqlite3"))
        assert done.returncode == 0, done.stderr
        with open_writer(server.url) as writer:
            figures = json.loads(_cli("compact", "--json", server.url).stdout)
            assert figures["after"]["version_count"] == 2
            add_all(writer, payments(30, 33))
            assert writer.standing.version_count == 5
        done = _cli("restore", server.url, str(tmp_path / "again.sqlite3"))
        assert "at data version 32" in done.stdout


def test_snapshot_of_many_pieces_goes_both_ways(tmp_path: Path) -> None:
    content = b"SQLite format 3\x00" + os.urandom(3_000_001)
    with server_here() as server:
        there = server.add(f"file://{tmp_path}/node.bkp")
        create_backend(there, Change(7, SnapshotBytes(content, 700_000), None))
        assert told_by(there) == told([Change(7, SnapshotBytes(content), None)])
        plain = f"socket:{server.address}?protocol=1"
        assert told_by(plain) == told_by(there)
        with open_writer(plain) as backend:
            backend.add_change(Change(9, SnapshotBytes(content[:1_000_000]), None))
        assert told_by(there)[-1] == told([Change(9, SnapshotBytes(content[:1_000_000]), None)])[0]


def test_damage_is_told_as_the_server_found_it(tmp_path: Path) -> None:
    url = _made(tmp_path)
    append(url, [*started_node(), *payments(4, 9)])
    path = tmp_path / "node.bkp"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    data[516 + 4] ^= 0xFF
    path.write_bytes(data)
    with server_here() as server:
        there = server.add(url)
        with pytest.raises(Damaged) as here, open_reader(url):
            pass
        with pytest.raises(Damaged) as found, open_reader(there):
            pass
    assert str(found.value) == str(here.value)
    assert found.value.offset_bytes == here.value.offset_bytes


# The right to write


def test_second_writer_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with server_here() as server:
        there = server.add(_made(tmp_path))
        with open_writer(there) as first:
            add_all(first, started_node())
            with pytest.raises(WriterConflict, match=f"process {os.getpid()} "):
                open_writer(there)
            first.add_change(payment(4))
        append(there, [payment(5)])
        assert told_by(there) == told([*started_node(), payment(4), payment(5)])


@pytest.mark.parametrize("scheme", ["file", "dir"])
def test_server_whose_backup_another_process_wrote_to_overwrites_nothing(
    tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system on which each machine has its own locks."""
    monkeypatch.setattr("cln_backup.backends.writer.fcntl.flock", lambda *_: None)
    url = _made(tmp_path) if scheme == "file" else f"dir://{tmp_path}/node"
    if scheme == "dir":
        create_backend(url, None)
    with server_here() as server:
        there = server.add(url)
        with open_writer(there) as writer:
            add_all(writer, started_node())
            append(url, [payment(4, "by another process")])
            with pytest.raises(WriterConflict, match="Another process"):
                writer.add_change(payment(4))
        expected = [*started_node(), payment(4, "by another process")]
        assert told_by(there) == told(expected)
        append(there, [payment(5)])
        assert told_by(there) == told([*expected, payment(5)])


def test_takeover_lets_the_next_writer_in_and_the_old_one_out_for_good(tmp_path: Path) -> None:
    with server_here() as server:
        there = server.add(_made(tmp_path))
        with open_writer(there) as old:
            add_all(old, started_node())
            take_over(there)
            with pytest.raises(WriterConflict, match="taken over"):
                old.add_change(payment(4))
            append(there, [payment(4, "by the new one")])
            with pytest.raises(BackupError):
                old.add_change(payment(4))
        assert told_by(there) == told([*started_node(), payment(4, "by the new one")])


def test_lost_connection_of_a_writer_does_not_keep_it_out(tmp_path: Path) -> None:
    with server_here() as server:
        there = server.add(_made(tmp_path))
        with open_writer(there) as writer:
            add_all(writer, started_node())
            lost = writer._link.session  # type: ignore[attr-defined]
            writer._link.session = None  # type: ignore[attr-defined] # open, as the server sees it
            writer.add_change(payment(4))
            lost.close()
        assert told_by(there) == told([*started_node(), payment(4)])


@pytest.mark.parametrize("scheme", ["file", "dir"])
def test_client_of_protocol_1_cannot_drop_a_snapshot(tmp_path: Path, scheme: str) -> None:
    url = f"{scheme}://{tmp_path}/backup"
    create_backend(url, None)
    kept = [*started_node(), Change(4, SnapshotBytes(b"SQLite format 3\x00" + bytes(5_000)), None)]
    append(url, kept)
    with server_process(url) as server:
        assert _rewound(server.port, 3) == wire.NACK
        assert told_by(server.url) == told(kept)
        append(server.url, [payment(5)])
        assert _rewound(server.port, 4) == wire.ACK
        assert told_by(server.url) == told(kept)
        assert _rewound(server.port, 3) == wire.NACK
        assert told_by(server.url) == told(kept)


def _rewound(port: int, to_version: int) -> int:
    """Asks for a rewind as a client of protocol 1 does; returns the type of the answer."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(20)
        sock.sendall(_packet(wire.REQ_METADATA, b""))
        sock.recv(25, socket.MSG_WAITALL)
        sock.sendall(_packet(wire.REWIND, wire.pack_version(to_version)))
        return sock.recv(1)[0]


# Nodes and tokens


def test_each_node_has_its_own_backup_and_token(tmp_path: Path) -> None:
    hashes = {name: create_token(str(tmp_path / f"{name}.token")) for name in ("alice", "bob")}
    lines = [f"{name} {_made(tmp_path, name)} {hashes[name]}" for name in hashes]
    (tmp_path / "nodes").write_text("# ours\n\n" + "\n".join(lines) + "\n")
    with server_process("--nodes", str(tmp_path / "nodes")) as server:
        for name in hashes:
            there = f"{server.url}?node={name}&token-file={tmp_path}/{name}.token"
            append(there, [*started_node(), payment(4, name)])
        for name, token in (("alice", "bob"), ("carol", "alice")):
            with pytest.raises(AccessDenied, match="Unknown node or wrong token"):
                open_reader(f"{server.url}?node={name}&token-file={tmp_path}/{token}.token")
        for query in ("", "?node=alice", "?protocol=1&deadline=1"):
            with pytest.raises((AccessDenied, Unreachable)):
                open_reader(server.url + query)
    for name in hashes:
        assert told_by(f"file://{tmp_path}/{name}.bkp")[-1] == told([payment(4, name)])[0]
        token = (tmp_path / f"{name}.token").read_text().strip()
        assert token not in "".join(server.said)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("alice file:///a.bkp", "expected a name"),
        ("al/ice file:///a.bkp " + 64 * "0", "a name must have"),
        ("alice file:///a.bkp secret-token-of-alice", "never the token itself"),
        ("a file:///a.bkp {0}\na file:///b.bkp {0}", "duplicate name or backup"),
        ("", "is empty"),
    ],
)
def test_list_of_nodes_that_cannot_be_right(tmp_path: Path, line: str, what: str) -> None:
    (tmp_path / "nodes").write_text(line.format(64 * "0"))
    done = _cli("server", "--nodes", str(tmp_path / "nodes"), "127.0.0.1:0")
    assert done.returncode == 12
    assert what in done.stderr


def test_a_bad_address_to_listen_at_is_told_by_its_own_form(tmp_path: Path) -> None:
    done = _cli("server", f"file://{tmp_path}/none", "127.0.0.1:http")
    assert done.returncode == BadUrl.exit_code
    assert "'127.0.0.1:http' cannot be understood: the address's port 'http' is no" in done.stderr
    assert "The form is HOST:PORT" in done.stderr


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_other_machines_need_tls_and_tokens(tmp_path: Path, address: str) -> None:
    done = _cli("server", _made(tmp_path), address)
    assert done.returncode == 12
    assert "Refusing to listen without TLS" in done.stderr
    done = _cli(
        "server", "--tls-dir", str(tmp_path / "tls"), f"file://{tmp_path}/node.bkp", address
    )
    assert done.returncode == 12
    assert "Refusing to listen without tokens" in done.stderr


# TLS


def test_tls_with_a_certificate_of_its_own(tmp_path: Path) -> None:
    url = _made(tmp_path)
    with server_process("--tls-dir", str(tmp_path / "tls"), url) as server:
        found = re.search("fingerprint=([0-9a-f]{64})", "".join(server.said))
        assert found is not None
        append(f"{server.url}?fingerprint={found[1]}", started_node())
        pin = tmp_path / "pin"
        append(f"{server.url}?pin={pin}", [payment(4)])
        assert pin.read_text().strip() == found[1]
        with pytest.raises(AccessDenied, match="is not trusted"):
            open_reader(f"{server.url}?tls=yes")
        with pytest.raises(AccessDenied, match="Certificate mismatch"):
            open_reader(f"{server.url}?fingerprint={'0' * 64}")
        with pytest.raises(Unreachable, match="use TLS"):
            open_reader(f"{server.url}?deadline=1")
        server.terminate()
        for name in ("server.crt", "server.key"):
            (tmp_path / "tls" / name).unlink()
        server.start()
        with pytest.raises(AccessDenied, match="Certificate mismatch"):
            open_reader(f"{server.url}?pin={pin}")
    assert told_by(url) == told([*started_node(), payment(4)])
    assert (tmp_path / "tls" / "server.key").stat().st_mode & 0o077 == 0


def test_tls_keeps_exactly_once_when_the_server_is_killed(tmp_path: Path) -> None:
    url = _made(tmp_path)
    paths = certificate.make(str(tmp_path / "tls"))
    shown = certificate.fingerprint(paths[0])
    with (
        server_process("--tls-cert", paths[0], "--tls-key", paths[1], url) as server,
        open_writer(f"{server.url}?fingerprint={shown}") as writer,
    ):
        add_all(writer, started_node())
        server.kill()
        server.start()
        add_all(writer, payments(4, 8))
        assert server.terminate() == 0
    assert told_by(url) == told([*started_node(), *payments(4, 8)])


# Packets from the open internet


def _send(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(20)
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return sock.recv(1 << 16)
        except OSError:
            return b""


def _packet(kind: int, payload: bytes) -> bytes:
    return struct.pack("!BI", kind, len(payload)) + payload


_HELLO = _packet(wire.METADATA, wire.pack_hello(wire.Hello("write"))) + _packet(4, b"")

_BAD = {
    "http": b"GET / HTTP/1.1\r\nHost: backup\r\n\r\n",
    "length of 4 GiB": b"\x01\xff\xff\xff\xff" + bytes(100),
    "unknown type": _packet(99, b"x"),
    "no zlib": _packet(wire.CHANGE, b"\x00\x00\x00\x01not compressed"),
    "cut zlib": _packet(wire.CHANGE, struct.pack("!I", 1) + zlib.compress(b"x" * 99)[:-5]),
    "short change": _packet(wire.CHANGE, b"\x00"),
    "short rewind": _packet(wire.REWIND, b"\x00"),
    "greeting too large": _packet(wire.METADATA, bytes(5000)),
    "greeting no JSON": _packet(wire.METADATA, b"\x00\x00\x00\x02{"),
    "wrong digest": _HELLO + _packet(wire.APPEND, struct.pack("!IB32s", 1, 0, b"") + b"x"),
    "wrong encoding": _HELLO + _packet(wire.APPEND, struct.pack("!IB32s", 1, 7, b"") + b"x"),
    "snapshot too large": _HELLO + _packet(wire.SNAPSHOT_BEGIN, struct.pack("!IQ", 1, 1 << 60)),
    "snapshot longer": _HELLO
    + _packet(wire.SNAPSHOT_BEGIN, struct.pack("!IQ", 1, 3))
    + _packet(wire.SNAPSHOT_DATA, b"\x00abcdef"),
    "snapshot interrupted": _HELLO
    + _packet(wire.SNAPSHOT_BEGIN, struct.pack("!IQ", 1, 3))
    + _packet(wire.REQ_METADATA, b""),
}


@functools.cache
def _bad(what: str) -> bytes:
    if what == "bomb":  # takes a second: not while the tests are collected
        return _packet(wire.CHANGE, struct.pack("!I", 1) + zlib.compress(bytes(300_000_000), 9))
    return _BAD[what]


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(_made(tmp_path_factory.mktemp("attacked"))) as server:
        append(server.url, started_node())
        yield server


@pytest.mark.parametrize("what", [*_BAD, "bomb"])
def test_malformed_packet_closes_its_connection_only(attacked: ServerProcess, what: str) -> None:
    with open_reader(attacked.url) as reader:
        _send(attacked.port, _bad(what))
        assert told(reader.stream_changes()) == told(started_node())
    assert told_by(attacked.url) == told(started_node())
    assert attacked.process.poll() is None
    assert "bug in cln-backup" not in "".join(attacked.said)


def test_memory_is_given_for_what_came_not_for_what_was_announced(attacked: ServerProcess) -> None:
    _send(attacked.port, _bad("bomb"))
    status = (f"/proc/{attacked.process.pid}/status",)
    with open(*status, encoding="ascii") as file:
        peak = re.search(r"VmHWM:\s+(\d+) kB", file.read())
    assert peak is not None
    assert int(peak[1]) < 150_000


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.integers(0, 0x2A), st.binary(max_size=80))
        | st.sampled_from([(wire.REQ_METADATA, b""), (wire.RESTORE, b"")]),
        max_size=6,
    ),
    st.booleans(),
    st.integers(0, 40),
)
def test_fuzz_of_the_live_server(
    attacked: ServerProcess, packets: list[tuple[int, bytes]], hello: bool, cut: int
) -> None:
    data = (_HELLO if hello else b"") + b"".join(_packet(*packet) for packet in packets)
    _send(attacked.port, data[: len(data) - cut] if cut else data)
    assert attacked.process.poll() is None


def test_after_the_fuzz_nothing_is_another(attacked: ServerProcess) -> None:
    assert told_by(attacked.url)[: len(started_node()) - 1] == told(started_node())[:-1]
    assert "bug in cln-backup" not in "".join(attacked.said)
    assert attacked.terminate() == 0


@given(st.sampled_from([
    wire.unpack_version, wire.unpack_hello, wire.unpack_standing, wire.unpack_change,
    wire.unpack_append, wire.unpack_snapshot_begin, wire.unpack_piece, wire.unpack_drop,
    wire.unpack_stream_start, wire.unpack_refusal, wire.unpack_wait,
]), st.binary(max_size=200))  # fmt: skip
@settings(max_examples=2_000)
def test_fuzz_of_the_decoder(unpack: object, payload: bytes) -> None:
    assert callable(unpack)
    with contextlib.suppress(BadPacket):
        unpack(payload)


# Life as a service


def test_readiness_and_sockets_of_systemd(tmp_path: Path) -> None:
    url = _made(tmp_path)
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(path)
        notify.settimeout(30)
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        child = (
            "import os, sys\n"
            f"os.dup2({listening.fileno()}, 3)\n"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
            f"os.execv({CLI!r}, ['backup-cli', 'server', '--log-mode', 'systemd', {url!r}])\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", child],
            pass_fds=[listening.fileno()],
            env={**os.environ, "NOTIFY_SOCKET": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        listening.close()
        assert notify.recv(100) == b"READY=1"
        append(f"socket:127.0.0.1:{port}", started_node())
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate()
        assert process.returncode == 0
        assert notify.recv(100) == b"STOPPING=1"
    assert all(re.match("<[0-7]>", line) for line in said.splitlines())
    assert told_by(url) == told(started_node())


def test_sigterm_that_the_system_gives_to_another_thread(tmp_path: Path) -> None:
    tgkill = getattr(ctypes.CDLL(None), "tgkill", None)
    if tgkill is None:
        pytest.skip("this C library cannot send a signal to one thread of another process")
    with server_process(_made(tmp_path)) as server, open_reader(server.url):
        pid = server.process.pid
        others = [int(thread) for thread in os.listdir(f"/proc/{pid}/task") if int(thread) != pid]
        assert others, "a connection has a thread of its own"
        assert tgkill(pid, others[0], int(signal.SIGTERM)) == 0
        assert server.end() == 0


def test_log_in_json(tmp_path: Path) -> None:
    with server_process("--log-mode", "json", "--log-level", "debug", _made(tmp_path)) as server:
        append(server.url, started_node())
        server.terminate()
        lines = [json.loads(line) for line in server.said]
    assert {"at", "level", "message"} == set(lines[0])
    assert not any("INSERT" in line["message"] for line in lines)


def test_metrics_of_each_node(tmp_path: Path) -> None:
    url = _made(tmp_path)
    with server_process("--metrics", "127.0.0.1:0", url) as server:
        found = re.search(r"http://\S+", "".join(server.said))
        assert found is not None
        append(server.url, started_node())
        with urllib.request.urlopen(found[0]) as answer:  # noqa: S310 - it is http
            text = answer.read().decode()
    assert 'cln_backup_head_version{node=""} 3.0' in text
    assert 'cln_backup_stored_changes_total{node=""} 5.0' in text


def test_one_nodes_wait_does_not_hold_up_another(tmp_path: Path) -> None:
    with server_here() as server:
        slow, quick = (server.add(_made(tmp_path, name)) for name in ("slow", "quick"))
        with open_writer(slow) as one, open_writer(quick) as other:
            with server.served(slow)._changed:
                thread = threading.Thread(target=add_all, args=(one, started_node()))
                thread.start()
                add_all(other, started_node())
                assert thread.is_alive()
            thread.join()
        assert told_by(slow) == told_by(quick) == told(started_node())
