"""Changes that a second process reads."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from cln_backup.backends import create_backend, open_reader, place_at
from cln_backup.backends.secrets import Secret
from cln_backup.compaction.compact import compact
from cln_backup.formats.key_slots import SecretKind
from cln_backup.model.change import Change
from cln_backup.model.errors import Damaged, StorageError
from cln_backup.operations.copy import copy
from cln_backup.operations.restore import restore
from cln_backup.operations.verify import verify
from cln_backup.process.child import Child
from cln_backup.replay import ahead
from cln_backup.replay.ahead import read_ahead
from tests.histories import (
    SnapshotBytes,
    add_all,
    append,
    payment,
    payments,
    started_node,
    told,
    told_by,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cln_backup.process.channel import Message

LARGE = 40
"""Changes of 100 KB, which do not fit into the pipe."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A backup of a node, with more than the pipe holds."""
    url = f"dir://{tmp_path}/backup"
    create_backend(url, None)
    texts = [os.urandom(50_000).hex() for _ in range(LARGE)]
    append(url, [*started_node(), *(payment(4 + n, text) for n, text in enumerate(texts))])
    return url


@pytest.fixture(autouse=True)
def children(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that read, of short histories too and on a machine with one processor."""
    pids: list[int] = []

    start = Child.__init__

    def seen(child: Child[Message], *arguments: Any, **options: Any) -> None:
        start(child, *arguments, **options)
        if options["work"] == "reads the backup":
            pids.append(child.pid)

    monkeypatch.setattr(Child, "__init__", seen)
    monkeypatch.setattr(ahead, "_MANY_CHANGES", 2)
    monkeypatch.setattr(ahead, "_PATIENCE_MS", 60_000)
    monkeypatch.setattr(ahead, "_LEAD_CHANGES", 0)
    monkeypatch.setattr(ahead, "_processors", lambda: 2)
    return pids


def test_same_changes_of_each_kind(tmp_path: Path, children: list[int]) -> None:
    url = f"dir://{tmp_path}/backup"
    create_backend(url, None)
    snapshot = Change(60, SnapshotBytes(b"SQLite format 3\x00" + os.urandom(3_000_000)), None)
    append(url, [*started_node(), *payments(4, 50), snapshot, payment(61, "\udcff\udc80 \u20ac\n")])
    with open_reader(url) as backend, read_ahead(backend) as changes:
        assert told(changes) == told(backend.stream_changes())
    assert len(children) == 1


def test_snapshot_is_read_as_often_as_wanted(tmp_path: Path, children: list[int]) -> None:
    url = f"dir://{tmp_path}/backup"
    content = b"SQLite format 3\x00" + os.urandom(3_000_000)
    create_backend(url, Change(3, SnapshotBytes(content), None))
    later = Change(60, SnapshotBytes(content[:2_000_000]), None)
    append(url, [*payments(4, 50), later, payment(61)])
    with open_reader(url) as reader, read_ahead(reader) as changes:
        for change in changes:
            if change.snapshot is not None:
                begun = next(iter(change.snapshot.chunks()))
                whole = [b"".join(change.snapshot.chunks()) for _ in range(2)]
                assert whole == [content[: change.snapshot.size_bytes]] * 2
                assert whole[0].startswith(begun)
    assert change.version == 61
    assert len(children) == 1


@pytest.mark.parametrize("target", ["dir", "file"])
def test_copy_with_snapshots(target: str, tmp_path: Path, children: list[int]) -> None:
    url = f"dir://{tmp_path}/backup"
    snapshot = SnapshotBytes(b"SQLite format 3\x00" + os.urandom(3_000_000))
    create_backend(url, Change(3, snapshot, None))
    append(url, [*payments(4, 50), Change(60, snapshot, None), payment(61)])
    copy(url, f"{target}://{tmp_path}/copy")
    assert told_by(f"{target}://{tmp_path}/copy") == told_by(url)
    assert len(children) == 1


def test_damage_is_told_behind_the_changes_before_it(url: str, tmp_path: Path) -> None:
    path = tmp_path / "backup" / "log-0000000002"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with open_reader(url) as backend:
        here = _until_damage(backend.stream_changes())
        with read_ahead(backend) as changes:
            assert _until_damage(changes) == here
    assert here[0] > 3


def _until_damage(changes: Iterator[Change]) -> tuple[int, str, dict[str, object]]:
    """The last version before an error, and the error."""
    given: list[Change] = []
    with pytest.raises(Damaged) as found:
        given.extend(changes)
    return given[-1].version, str(found.value), vars(found.value)


def test_killed_reader_leaves_nothing_half(url: str, tmp_path: Path, children: list[int]) -> None:
    target = tmp_path / "restored.sqlite3"

    def kill(change: Change) -> None:
        if change.version == 5:
            os.kill(children[0], signal.SIGKILL)

    with open_reader(url) as backend:
        with pytest.raises(StorageError, match="ended unexpectedly"):
            restore(backend, str(target), kill)
        assert sorted(os.listdir(tmp_path)) == ["backup"]
        assert restore(backend, str(target)).version == 3 + LARGE
    with closing(sqlite3.connect(target)) as database:
        assert database.execute("SELECT count(*) FROM payments").fetchone() == (LARGE,)


def test_reader_ends_with_the_block(url: str, children: list[int]) -> None:
    with open_reader(url) as backend:
        with read_ahead(backend) as changes:
            assert next(changes).version == 1
        with read_ahead(backend) as changes:
            assert next(changes).version == 1
            os.kill(children[1], signal.SIGSTOP)
        with pytest.raises(KeyError), read_ahead(backend) as changes:
            raise KeyError(next(changes).version)
    assert len(children) == 3
    for pid in children:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_no_process_to_spare(
    url: str, children: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    gc.collect()  # what another test left is not counted as closed here
    open_files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with open_reader(url) as backend, read_ahead(backend) as changes:
        assert told(changes) == told(backend.stream_changes())
    assert children == []
    if open_files:
        assert len(os.listdir("/proc/self/fd")) == open_files


def test_history_that_went_on_meanwhile_is_read_as_it_was_opened(
    url: str, children: list[int]
) -> None:
    with open_reader(url) as backend:
        append(url, [payment(4 + LARGE, "it came later")])
        before = told(backend.stream_changes())
        with read_ahead(backend) as changes:
            assert told(changes) == before
    assert len(children) == 1
    assert before[-1].version == 3 + LARGE


@pytest.mark.parametrize("scheme", ["dir", "file"])
def test_verify_copy_and_compact_read_ahead(
    scheme: str, tmp_path: Path, children: list[int]
) -> None:
    url = f"{scheme}://{tmp_path}/backup"
    history = [*started_node(), *payments(4, 50)]
    create_backend(url, None)
    append(url, history)
    with open_reader(url) as backend:
        assert verify(backend, replayed=True).version == 49
    assert len(children) == 1
    assert copy(url, f"file://{tmp_path}/copy").version == 49
    assert len(children) == 2
    compact(url)
    assert len(children) == 3
    with open_reader(url) as backend:
        assert told(backend.stream_changes())[1:] == told(history)[-1:]
        restore(backend, str(tmp_path / "restored.sqlite3"))
    with closing(sqlite3.connect(tmp_path / "restored.sqlite3")) as database:
        assert database.execute("SELECT count(*) FROM payments").fetchone() == (46,)


def test_what_a_person_typed_unlocks_it_for_the_reader_too(
    tmp_path: Path, children: list[int]
) -> None:
    url = f"dir://{tmp_path}/backup"
    secret = Secret(SecretKind.KEY_FILE, os.urandom(32))
    place = place_at(url)
    with place.creating(secret=secret), place.open_reader(secret=secret):
        pass
    with place.open_writer(secret=secret) as writer:
        add_all(writer, started_node())
    with place.open_reader(secret=secret) as backend, read_ahead(backend) as changes:
        os.kill(children[0], 0)
        assert told(changes) == told(started_node())


def test_short_history_is_read_here(
    url: str, children: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with open_reader(url) as backend, read_ahead(backend) as changes:
        assert told(changes) == told(backend.stream_changes())
    assert children == []
