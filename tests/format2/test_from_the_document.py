"""A reader of format 2 that was written from docs/format.md alone.

It shares nothing with the program. Where the two disagree, one of them is wrong, or the document
says too little.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cln_backup.backends import open_reader, open_writer
from cln_backup.model.change import FOREIGN_KEYS_OFF, Change
from tests.format2.small import KEY, KINDS, SNAPSHOT, make_every_kind_of_file, url_of
from tests.histories import append, payment, payments, prepared, take_over, told_by

if TYPE_CHECKING:
    from collections.abc import Iterator


VECTORS = Path(__file__).parent.parent / "vectors"
LOG_FILE, BASE_FILE, SNAPSHOT_FILE, TIMED_LOG_FILE = 1, 2, 3, 5
Told = tuple[int, str, tuple[bytes, ...]]


def derived(secret: bytes, salt: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt, purpose).derive(secret)


def master_key(path: Path, key_file: bytes) -> bytes:
    raw = path.read_bytes()
    assert len(raw) == 196
    magic, kind, backup_id = struct.unpack_from(">8sB7x16s", raw)
    salt, wrapped = raw[84:116], raw[116:164]
    assert magic == b"CLNKEY2\n"
    assert kind == 2
    assert hashlib.sha256(raw[:164]).digest() == raw[164:]
    wrapping = derived(key_file, salt, b"cln-backup holder" + bytes([kind]) + backup_id)
    return AESGCM(wrapping).decrypt(bytes(12), wrapped, raw[:116])


class Record(NamedTuple):
    at: int
    end: int
    type: int
    version: int
    rest: bytes
    seal: bytes
    at_ms: int


class File:
    def __init__(self, path: Path, kind: int, master: bytes | None) -> None:
        self.raw = path.read_bytes()
        magic, found, cipher, self.backup_id, number, self.epoch, _, salt = struct.unpack_from(
            ">8sBB6x16sQQQ32s", self.raw
        )
        assert magic == b"CLNBKP2\n"
        assert found == kind or (kind, found) == (LOG_FILE, TIMED_LOG_FILE)
        self.timed = found == TIMED_LOG_FILE
        assert cipher == (0 if master is None else 1)
        assert number == int(path.name.split("-")[2 if kind == SNAPSHOT_FILE else 1])
        self.key = master and derived(master, salt, b"cln-backup file" + self.backup_id)
        self.state = self.opened(0, self.raw[:88], self.raw[88:496], self.raw[496:512])
        self.seal = self.raw[496:512]
        self.seals = {512: self.seal}

    def opened(self, part: int, covered: bytes, body: bytes, seal: bytes) -> bytes:
        if self.key:
            return AESGCM(self.key).decrypt(part.to_bytes(12, "big"), body + seal, covered)
        assert hashlib.sha256(covered + body).digest()[:16] == seal
        return body

    def records(self, end: int | None = None) -> Iterator[Record]:
        """Up to `end`, or to the point after which there are only zeros."""
        at, part = 512, 0
        inflater = zstandard.ZstdDecompressor(max_window_size=8 << 20).decompressobj()
        while at != end:
            if end is None and not any(self.raw[at:]):
                return
            part += 1
            mark, size = struct.unpack_from(">BI", self.raw, at)
            assert mark == 0xC3
            body, seal = (
                self.raw[at + 5 : at + 5 + size],
                self.raw[at + 5 + size : at + 21 + size],
            )
            assert struct.unpack_from(">IB", self.raw, at + 21 + size) == (size, 0x3C)
            plain = self.opened(part, self.seals[at] + self.raw[at : at + 5], body, seal)
            kind, version = struct.unpack_from(">BQ", plain)
            rest, at_ms = plain[9:], 0
            if self.timed and kind in {1, 2, 3, 4}:
                at_ms, rest = int.from_bytes(rest[:6], "big"), rest[6:]
            if kind in {1, 2, 3, 6}:
                (length,) = struct.unpack_from(">I", rest)
                rest = inflater.decompress(rest[4:])
                assert len(rest) == length
            start, at = at, at + size + 26
            self.seals[at] = seal
            yield Record(start, at, kind, version, rest, seal, at_ms)

    def content(self) -> tuple[bytes, bytes]:
        """The contents of its chunks, and its last seal."""
        *chunks, last = self.records()
        content = b"".join(chunk.rest for chunk in chunks)
        assert {chunk.type for chunk in chunks} <= {6}
        assert last.type == 7
        assert struct.unpack(">Q", last.rest) == (len(content),)
        assert last.end == len(self.raw)
        return content, last.seal


def read(directory: Path, key_file: bytes | None = None) -> list[Told]:
    master = key_file and master_key(directory / "key-key-file", key_file)
    newest = max(directory.glob("base-*"))
    base = File(newest, BASE_FILE, master)
    version, whole, enforced, _, _, segment, offset, seal, _ = struct.unpack_from(
        ">Q?BBQQQ16sQ", base.state
    )
    content, base_seal = base.content()
    told: list[Told] = []
    if whole:
        told.append((version, "snapshot", (content,)))
        if not enforced:
            told.append((version, "rider", (b"PRAGMA foreign_keys = OFF;",)))
    logs = {
        int(path.name[4:]): File(path, LOG_FILE, master)
        for path in directory.glob("log-*")
        if any(path.read_bytes()[:512])
    }
    # From the newest segment back to the base's: each says where the one before it ended.
    chain: list[tuple[int, int | None]] = []
    number, end = max(logs, default=0), None
    while number >= max(segment, 1):
        chain.insert(0, (number, end))
        state = logs[number].state
        number, end, before, digest = struct.unpack_from(">QQ16s32s", state)
        if number >= max(segment, 1):
            joined = logs[number]
            assert hashlib.sha256(joined.raw[:end]).digest() == digest
            assert before == joined.raw[end - 21 : end - 5] or (end, before) == (512, joined.seal)
        elif not number:
            assert end == 0
            assert offset or before == base_seal
    for number, end in chain:
        log = logs[number]
        assert log.backup_id == base.backup_id
        for record in log.records(end):
            if number == segment and record.at < offset:
                continue
            if record.type == 5:
                assert told.pop()[0] == record.version
            elif record.type == 4:
                o, size, last = struct.unpack(">QQ16s", record.rest)
                beside = File(directory / f"snapshot-{number:010}-{o:010}", SNAPSHOT_FILE, master)
                assert o == record.at
                content, found = beside.content()
                assert (len(content), found) == (size, last)
                told.append((record.version, "snapshot", (content,)))
            else:
                kind = "transaction" if record.type == 1 else "rider"
                told.append((record.version, kind, tuple(record.rest.split(b"\0"))))
        if number == segment and offset:
            assert log.seals[offset] == seal
    return told


@pytest.mark.parametrize("kind", KINDS)
def test_times_and_lengths_are_read_from_the_document_alone(kind: str, tmp_path: Path) -> None:
    url = url_of(kind, tmp_path)
    make_every_kind_of_file(url)
    append(url, [replace(payment(9), stored_ms=1_600_000_000_123)])
    with open_reader(url) as backend:
        expected = [change.stored_ms for change in backend.stream_changes(3)]
    master = master_key(tmp_path / "node" / "key-key-file", KEY) if kind == "encrypted" else None
    times: list[int] = []
    for path in sorted((tmp_path / "node").glob("log-*"))[1:]:
        log = File(path, LOG_FILE, master)
        capacity, *marks = struct.unpack_from(">QQQ", log.state, 157)
        assert marks == times[:-3:-1] or not times
        times += [record.at_ms for record in log.records(None) if record.type in {1, 2, 3, 4}]
    assert times == expected
    assert capacity == path.stat().st_size
    assert times[-1] == 1_600_000_000_123


def shortened(told: list[Told]) -> list[Told]:
    return [
        (v, k, (hashlib.sha256(texts[0]).digest(),) if k == "snapshot" else texts)
        for v, k, texts in told
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_read_from_the_document_alone(kind: str) -> None:
    place = VECTORS / f"format2-{kind}"
    key_file = (place / "node.key").read_bytes() if kind == "encrypted" else None
    found = shortened(read(place / "node", key_file))
    expected = json.loads((place / "told.json").read_text())
    assert found == [(v, k, tuple(base64.b64decode(t) for t in texts)) for v, k, texts in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_program_writes_is_read_from_the_document_alone(kind: str, tmp_path: Path) -> None:
    url = url_of(kind, tmp_path)
    make_every_kind_of_file(url)
    # Large ones, a segment that was claimed and not begun, and a base amid a segment.
    append(url, [payment(9, "x" * 3_000_000), Change(9, None, [FOREIGN_KEYS_OFF])])
    (tmp_path / "node" / "log-0000000004").write_bytes(bytes(1 << 18))
    for version in (10, 20):
        append(url, payments(version, version + 10))
        told = shortened(read(tmp_path / "node", KEY if kind == "encrypted" else None))
        assert told == [(t.version, t.kind.value, t.content) for t in told_by(url)]
        with open_writer(url) as writer:
            with open_reader(url) as reader:
                base = Change(writer.version - 1, SNAPSHOT, None)
                staged = prepared(reader, base, foreign_keys=False)
            take_over(writer, staged)
            writer.rewind()
        told = shortened(read(tmp_path / "node", KEY if kind == "encrypted" else None))
        assert told == [(t.version, t.kind.value, t.content) for t in told_by(url)]
        append(url, payments(version + 9, version + 10))
