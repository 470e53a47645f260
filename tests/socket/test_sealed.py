"""A sealed backup: the server stores objects that it cannot read, and is not trusted with more."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer, place_at
from cln_backup.backends.objects.sealed import ServerBucket
from cln_backup.backends.secrets import secret_of_words
from cln_backup.backends.socket.url import parse_socket_url
from cln_backup.model.change import Change
from cln_backup.model.errors import (
    BackupError,
    BadUrl,
    Damaged,
    Locked,
    StorageError,
    WriterConflict,
)
from cln_backup.server.sealed import Sealed
from cln_backup.storage.local_bucket import RetainingBucket
from cln_backup.wire import object_packets as objects
from cln_backup.wire import packets as wire
from tests import captured
from tests.histories import add_all, append, payment, payments, started_node, told, told_by
from tests.operations.test_whole_node import WORDS, Old, back, require_whole
from tests.plugin.home import CAPTURES, Home
from tests.soak import SOAK
from tests.socket.serving import ServerHere, server_here, server_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.socket.serving import ServerProcess

_HISTORY = [*started_node(), *payments(4, 12)]
_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))


def _key(directory: Path) -> str:
    path = directory / "node.key"
    path.write_bytes(bytes(range(32)))
    path.chmod(0o600)
    return f"key-file={path}"


@pytest.fixture
def server() -> Iterator[ServerHere]:
    with server_here() as found:
        yield found


@pytest.fixture
def url(server: ServerHere, tmp_path: Path) -> str:
    """A sealed backup with a history, on a server in this process."""
    made = f"{server.add(f'objects://{tmp_path}/stored')}&{_key(tmp_path)}"
    create_backend(made, None)
    append(made, _HISTORY)
    return made


def _node(server: ServerHere) -> Sealed:
    (node,) = server.nodes.values()
    assert isinstance(node, Sealed)
    return node


def test_nothing_of_the_database_is_on_the_server(url: str, tmp_path: Path) -> None:
    append(url, payments(12, 13))
    for path in (tmp_path / "stored").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"payment" not in content
            assert b"INSERT" not in content
            assert path.stat().st_mode & 0o77 == 0


@pytest.mark.usefixtures("url")
def test_copy_of_the_directory_is_read_without_the_server(tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "stored", tmp_path / "copy")
    assert told_by(f"objects://{tmp_path}/copy?{_key(tmp_path)}") == told(_HISTORY)
    with pytest.raises(Locked):
        open_reader(f"objects://{tmp_path}/copy")


def test_client_without_a_key_is_told_that_it_needs_one(url: str) -> None:
    plain = url.partition("&")[0]
    for call in (open_reader, open_writer, lambda place: create_backend(place, None)):
        with pytest.raises(Locked, match="sealed"):
            call(plain)
    assert [key.label for key in place_at(plain).keys()] == ["key-file"]  # noqa: SIM118


def test_server_that_offers_a_plain_backup_instead_gets_nothing(
    server: ServerHere, tmp_path: Path
) -> None:
    """It could read all that a node would then store."""
    plain = server.add(f"file://{tmp_path}/plain.bkp")
    create_backend(plain, None)
    before = (tmp_path / "plain.bkp").read_bytes()
    sealed = f"{plain}&{_key(tmp_path)}"
    for call in (open_reader, open_writer):
        with pytest.raises(Damaged, match="a key was given"):
            call(sealed)
    with pytest.raises(BadUrl, match="Nothing was made"):
        create_backend(sealed, None)
    assert (tmp_path / "plain.bkp").read_bytes() == before
    assert place_at(plain).keys() == []


def test_changed_object_is_refused(url: str, tmp_path: Path) -> None:
    path = max((tmp_path / "stored").glob("log-*"))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged), open_reader(url) as reader:
        reader.check()


def test_second_node_is_fenced_by_the_names_alone(url: str) -> None:
    first = open_writer(url)
    add_all(first, payments(12, 13))
    first._lock.release()  # type: ignore[attr-defined]  # as if on another machine
    append(url, payments(13, 14))
    with pytest.raises(WriterConflict):
        add_all(first, [payment(13)])
    first.close()
    assert told_by(url) == told([*_HISTORY, *payments(12, 14)])


def test_quota_is_warned_of_and_then_kept(server: ServerHere, tmp_path: Path) -> None:
    there = server.add(f"objects://{tmp_path}/stored", None, "quota=64K")
    url = f"{there}&{_key(tmp_path)}"
    create_backend(url, None)
    append(url, started_node())
    said: list[str] = []
    stored = 3
    with place_at(url).open_writer(on_event=lambda event: said.append(event.text)) as writer:
        refusal = ""
        while not refusal:
            try:
                add_all(writer, payments(stored + 1, stored + 2))
                stored += 1
            except StorageError as error:
                refusal = str(error)
        assert "is used up" in refusal
        with pytest.raises(StorageError):  # no change after one that was not stored
            add_all(writer, payments(stored + 1, stored + 2))
    assert [text for text in said if "nearly used up" in text]
    node = _node(server)
    assert node.used_bytes <= 64 << 10
    assert told_by(url) == told([*started_node(), *payments(4, stored + 1)])
    before = node.objects, node.used_bytes
    node.open()  # as at the server's next start: what is counted is what is there
    assert (node.objects, node.used_bytes) == before


def test_stolen_token_removes_no_history(server: ServerHere, tmp_path: Path) -> None:
    there = server.add(f"objects://{tmp_path}/stored", None, "retain=30")
    url = f"{there}&{_key(tmp_path)}"
    create_backend(url, None)
    append(url, _HISTORY)
    bucket = ServerBucket(parse_socket_url(url), 20.0, lambda _: None)
    with contextlib.closing(bucket):
        all_keys = [one.key for one in bucket.list()]
        bucket.delete(all_keys)
        left = [one.key for one in bucket.list()]
        assert len(left) == 1, "the fence"
        for key in all_keys:
            with contextlib.suppress(StorageError):  # a change without a base beside it
                assert not bucket.put_new(key, b"another history")
        with pytest.raises(StorageError, match="reserved"):
            bucket.delete(["removed/log-0000000001"])
        with pytest.raises(StorageError, match="reserved"):
            bucket.put_new("removed", b"a file in the way")
        assert bucket.list("removed/") == []
    for path in (tmp_path / "stored" / "removed").iterdir():
        path.rename(tmp_path / "stored" / path.name)
    assert told_by(url) == told(_HISTORY)


def test_retained_objects_go_after_their_days(tmp_path: Path) -> None:
    (tmp_path / "stored").mkdir()
    bucket = RetainingBucket(str(tmp_path / "stored"), 30)
    for key in ("base-1", "parts/a/1", "log-2"):
        assert bucket.put_new(key, key.encode())
    assert bucket.remove(["base-1", "parts/a/1", "missing"]) == []
    long_ago = time.time() - 31 * 86_400
    os.utime(tmp_path / "stored" / "removed" / "base-1", (long_ago, long_ago))
    assert bucket.remove(["log-2"]) == [len("base-1")]
    assert sorted(one.key for one in bucket.everything()) == ["log-2", "parts/a/1"]
    assert bucket.put_new("base-1", b"again")


def test_object_stored_during_a_removal_does_not_replace_the_retained_one(tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    stored.mkdir()
    bucket = RetainingBucket(str(stored), 30)
    assert bucket.put_new("log-1", b"history")
    bucket.remove(["log-1"])
    (stored / "log-1").write_bytes(b"another")  # by a request that was let in before the removal
    assert bucket.remove(["log-1", "log-1"]) == []
    assert (stored / "removed" / "log-1").read_bytes() == b"history"
    assert (stored / "log-1").read_bytes() == b"another"


def _packet(kind: int, payload: bytes) -> bytes:
    return wire.pack_head(kind, len(payload)) + payload


def _key_field(key: bytes) -> bytes:
    return struct.pack("!H", len(key)) + key


@contextlib.contextmanager
def _greeted(url: str) -> Iterator[socket.socket]:
    place = parse_socket_url(url)
    with socket.create_connection(place.server) as sock:
        sock.settimeout(60.0)
        hello = wire.Hello(objects.ROLE, place.node)
        sock.sendall(
            _packet(wire.METADATA, wire.pack_hello(hello)) + _packet(wire.REQ_METADATA, b"")
        )
        assert sock.recv(1)[0] == wire.METADATA
        sock.recv(1 << 16)
        yield sock


_HOSTILE = [
    *(b"../escape", b"/etc/passwd", b"a//b", b"a/../b", b".hidden", b"", b"a/b/c/d", b"x" * 200),
    *(b"name\0", b"caf\xc3\xa9", b"removed/", b"-x", b"a/"),
]


@pytest.mark.parametrize("key", _HOSTILE)
def test_invalid_key_ends_the_connection_and_stores_nothing(
    url: str, tmp_path: Path, key: bytes
) -> None:
    before = sorted(tmp_path.rglob("*"))
    requests = [
        (objects.PUT, _key_field(key) + b"content"),
        (objects.GET, struct.pack("!QI", 0, 9) + key),
        (objects.DELETE, _key_field(b"log-0000000001") + _key_field(key)),
        (objects.LIST, _key_field(b"") + _key_field(key or b"..")),
    ]
    for kind, payload in requests:
        with _greeted(url) as sock:
            sock.sendall(_packet(kind, payload))
            answer = sock.recv(1 << 16)
            assert not answer or answer[0] in (wire.REFUSED, objects.LISTING)
    assert sorted(tmp_path.rglob("*")) == before
    assert told_by(url) == told(_HISTORY)


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        (objects.PUT, objects.MAX_PUT_BYTES + 1),
        (objects.GET, objects.MAX_GET_BYTES + 1),
        (objects.LIST, objects.MAX_LIST_BYTES + 1),
        (objects.DELETE, 0xFFFF_FFFF),
    ],
)
def test_packet_that_is_too_large_is_refused_before_it_is_read(
    url: str, kind: int, length: int
) -> None:
    with _greeted(url) as sock:
        sock.sendall(wire.pack_head(kind, length))
        assert sock.recv(1 << 16) == b""
    assert told_by(url) == told(_HISTORY)


def test_put_that_is_cut_off_anywhere_stores_nothing(url: str, tmp_path: Path) -> None:
    whole = _packet(objects.PUT, objects.pack_put("log-9999999999", b"content"))
    before = sorted((tmp_path / "stored").iterdir())
    for end in range(len(whole)):
        with _greeted(url) as sock:
            sock.sendall(whole[:end])
    with _greeted(url) as sock:  # answered after all that was sent before
        sock.sendall(_packet(objects.LIST, objects.pack_list("", "")))
        assert sock.recv(1)[0] == objects.LISTING
    assert sorted((tmp_path / "stored").iterdir()) == before


@pytest.mark.parametrize("kind", [wire.APPEND, wire.DROP, wire.STREAM, wire.COMPACT, 0x33])
def test_packet_of_a_plain_backup_is_refused(url: str, kind: int) -> None:
    with _greeted(url) as sock:
        sock.sendall(_packet(kind, b""))
        assert sock.recv(1 << 16) == b""


def test_protocol_1_is_refused(url: str) -> None:
    with pytest.raises(BackupError):
        open_reader(f"socket:{parse_socket_url(url).server}?protocol=1&deadline=1")


class _SealedHome(Home):
    """A node whose backup is sealed on a server, or read from the server's directory."""

    def init(self, *options: str) -> None:
        self.cli("init", "--encrypt", "--lightning-dir", str(self.directory), *options, self.url)
        self.url = json.loads((self.directory / "backup.lock").read_text())["backend_url"]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[tuple[_SealedHome, ServerProcess]]:
    with server_process(f"objects://{tmp_path}/stored") as server_of_node:
        found = _SealedHome(tmp_path)
        found.url = server_of_node.url
        found.init()
        yield found, server_of_node


@pytest.mark.parametrize("name", captured.SMALL if SOAK else ["router"])
def test_a_day_of_a_node_while_the_server_is_killed(
    home: tuple[_SealedHome, ServerProcess], tmp_path: Path, name: str
) -> None:
    node, server_of_node = home
    capture = str(CAPTURES / "small" / name)
    running = node.start("--capture", f"{capture}.jsonl.xz", "--rate", "150")
    for calls in (40, 90, 200):
        node.wait_for_calls(calls)
        server_of_node.kill()
        server_of_node.start()
    node.end(running)
    recorded = captured.unpacked(
        CAPTURES / "small" / f"{name}.sqlite3.xz", tmp_path / "recorded.sqlite3"
    )
    node.require_same(node.database, recorded)
    assert server_of_node.terminate() == 0
    key = node.url.partition("key-file=")[2]
    node.url = f"objects://{tmp_path}/stored?key-file={key}"
    node.require_same(node.database, recorded)


def test_server_that_is_set_back_is_found_at_the_next_start(
    home: tuple[_SealedHome, ServerProcess], tmp_path: Path
) -> None:
    node, server_of_node = home
    node.run(*_ROUTER, "--calls", "60")
    server_of_node.terminate()
    shutil.copytree(tmp_path / "stored", tmp_path / "earlier")
    server_of_node.start()
    node.run(*_ROUTER, "--calls", "60")
    server_of_node.terminate()
    shutil.rmtree(tmp_path / "stored")
    (tmp_path / "earlier").rename(tmp_path / "stored")
    server_of_node.start()
    node.set_options(on_gap="halt")
    node.run(*_ROUTER, "--calls", "10", code=None)
    assert "Backup is out of date" in node.log() + node.stderr


def test_change_that_is_larger_than_a_part_comes_back(url: str) -> None:
    large = payment(12)
    assert large.transaction is not None
    text = "x" * (5 << 20)
    statements = (f"INSERT INTO payments (version, description) VALUES (99, '{text}')",)
    change = Change(large.version, None, (*statements, *large.transaction))
    append(url, [change])
    assert told_by(url) == told([*_HISTORY, change])


def test_directory_of_another_disk_takes_no_change(
    server: ServerHere, url: str, tmp_path: Path
) -> None:
    """A server that was restarted before its disk was mounted, and one whose disk was exchanged."""
    stored = tmp_path / "stored"
    with open_writer(url) as writer:
        add_all(writer, payments(12, 13))
        stored.rename(tmp_path / "unmounted")
        stored.mkdir()
        with pytest.raises(StorageError, match="replaced"):
            add_all(writer, payments(13, 14))
    node = _node(server)
    node.close()
    node.open()
    bucket = ServerBucket(parse_socket_url(url), 20.0, lambda _: None)
    with contextlib.closing(bucket), pytest.raises(StorageError, match="disk mounted"):
        bucket.put_new("log-0000000099", b"a change")
    assert list(stored.iterdir()) == []
    stored.rmdir()
    (tmp_path / "unmounted").rename(stored)
    node.close()
    node.open()
    append(url, payments(13, 14))
    assert told_by(url) == told([*_HISTORY, *payments(12, 14)])


def test_whole_node_is_back_from_a_sealed_backup(server: ServerHere, tmp_path: Path) -> None:
    old = Old(tmp_path, url=server.add(f"objects://{tmp_path}/stored"))
    new = tmp_path / "bare" / "bitcoin"
    done = back(old.url, new, secret_of_words(WORDS))
    require_whole(old, new)
    assert done.key_slot == "key-file-2"
    for path in (tmp_path / "stored").glob("files-*"):
        assert b"of the node" not in path.read_bytes()
    assert len(list((tmp_path / "stored").glob("files-*"))) == 1
