"""Changes that a second process reads."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_backend
from cln_backup.model import errors
from cln_backup.model.change import Change
from cln_backup.model.errors import BackupError, Damaged, StorageError
from cln_backup.operations.restore import restore
from cln_backup.replay.ahead import read_ahead
from tests.histories import SnapshotBytes, append, payment, payments, started_node, told

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that are forked."""
    pids: list[int] = []
    fork = os.fork

    def seen() -> int:
        pid = fork()
        pids.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", seen)
    return pids


def test_same_changes_of_each_kind(tmp_path: Path, children: list[int]) -> None:
    url = f"dir://{tmp_path}/backup"
    create_backend(url, None)
    snapshot = Change(60, SnapshotBytes(b"SQLite format 3\x00" + os.urandom(3_000_000)), None)
    append(url, [*started_node(), *payments(4, 50), snapshot, payment(61, "\udcff\udc80 \u20ac\n")])
    with open_backend(url) as backend, read_ahead(backend) as changes:
        assert told(changes) == told(backend.stream_changes())
    assert len(children) == 1


def test_damage_is_told_behind_the_changes_before_it(url: str, tmp_path: Path) -> None:
    path = tmp_path / "backup" / "log-0000000002"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with open_backend(url) as backend:
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

    with open_backend(url) as backend:
        with pytest.raises(StorageError, match="ended in the middle"):
            restore(backend, str(target), kill)
        assert sorted(os.listdir(tmp_path)) == ["backup"]
        assert restore(backend, str(target)).version == 3 + LARGE
    with closing(sqlite3.connect(target)) as database:
        assert database.execute("SELECT count(*) FROM payments").fetchone() == (LARGE,)


def test_reader_ends_with_the_block(url: str, children: list[int]) -> None:
    with open_backend(url) as backend:
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


def test_no_process_to_spare(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", refused)
    gc.collect()  # what another test left is not counted as closed here
    open_files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with open_backend(url) as backend, read_ahead(backend) as changes:
        assert told(changes) == told(backend.stream_changes())
    if open_files:
        assert len(os.listdir("/proc/self/fd")) == open_files


@pytest.mark.parametrize(
    "kind",
    [kind for kind in vars(errors).values() if isinstance(kind, type)],
    ids=lambda kind: kind.__name__,
)
def test_each_error_comes_through_whole(kind: type[BackupError]) -> None:
    error = kind("what happened")
    error.__dict__.update(dict.fromkeys(error.__dict__, 7))
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (type(again), str(again), vars(again)) == (kind, "what happened", vars(error))
