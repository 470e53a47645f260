"""A sync that fails once: the disk may have thrown away what it was given, and will not say so."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.model.change import Change
from cln_backup.model.errors import StorageError
from cln_backup.operations.restore import restore
from cln_backup.storage import fsio
from tests.disasters.places import KINDS, is_there, url_in
from tests.histories import (
    append,
    image,
    long_text,
    payment,
    payments,
    prepared,
    rider,
    started_node,
    take_over,
    told,
    told_by,
)

if TYPE_CHECKING:
    from pathlib import Path

    from cln_backup.backends.contract import Writer

_BLOCK_BYTES = 4096


class FailingSync:
    """`os.fdatasync` (or `os.fsync`) that fails at one call, and works before and after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str = "fdatasync") -> None:
        self.calls = 0
        self.fails_at = 0
        self._real = getattr(os, name)
        monkeypatch.setattr(os, name, self._sync)

    def _sync(self, fd: int) -> None:
        self.calls += 1
        if self.calls == self.fails_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._real(fd)

    def fail_at(self, call: int) -> None:
        self.calls, self.fails_at = 0, call


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(kind: str, tmp_path: Path) -> str:
    place = tmp_path / "backup"
    place.mkdir(mode=0o700)
    url = url_in(place, kind)
    create_backend(url, None)
    append(url, [*started_node(), *payments(4, 6)])
    return url


def _transaction(backend: Writer) -> None:
    backend.add_change(payment(6))


def _rider(backend: Writer) -> None:
    backend.add_change(rider(5))


def _snapshot(backend: Writer) -> None:
    backend.add_change(Change(9, image("x" * 9_000), None))


def _rewind(backend: Writer) -> None:
    backend.rewind()


@pytest.mark.parametrize("act", [_transaction, _rider, _snapshot, _rewind])
def test_failed_sync_is_never_retried_and_ends_the_writer(
    act: object, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(act)
    sync = FailingSync(monkeypatch)
    for call in range(1, 20):
        with open_writer(url) as backend:
            sync.fail_at(call)
            try:
                act(backend)
            except StorageError:
                at_failure = sync.calls
                assert at_failure == call, "synced again after a sync had failed"
                for again in (_transaction, _rider, _rewind):
                    with pytest.raises(StorageError):
                        again(backend)
                assert sync.calls == at_failure
            else:
                assert call > 1
                break
        # The next process goes by what is on the disk; the test's own disk lost nothing.
        with open_writer(url) as backend:
            if backend.standing.version_count > 7:
                backend.rewind()
            elif backend.standing.version_count < 7:
                backend.add_change(payments(5, 6)[0])


def test_append_syncs_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = FailingSync(monkeypatch)
    with open_writer(url) as backend:
        backend.add_change(payment(6))  # a directory's writer begins a segment with it
        sync.fail_at(0)
        backend.add_change(payment(7))
        assert sync.calls == 1
        backend.add_change(rider(7))
        assert sync.calls == 2


def test_change_is_synced_after_it_was_written(
    kind: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    write_at, fdatasync = fsio.write_at, os.fdatasync

    def written(fd: int, buffers: list[bytes], offset: int, *, op: str) -> int:
        order.append(op)
        return write_at(fd, buffers, offset, op=op)

    def synced(fd: int) -> None:
        order.append("sync")
        fdatasync(fd)

    monkeypatch.setattr(fsio, "write_at", written)
    monkeypatch.setattr(os, "fdatasync", synced)
    with open_writer(url) as backend:
        backend.add_change(payment(6))
        order.clear()
        backend.add_change(payment(7))
    assert order[-1] == "sync"
    expected = {"append entry", "write header"} if kind == "file" else {"append record"}
    assert set(order[:-1]) == expected


@pytest.mark.parametrize("name", ["fdatasync", "fsync"])
def test_failed_sync_of_a_new_backup_leaves_no_backup(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    place = tmp_path / "new"
    place.mkdir()
    url = url_in(place, kind)
    for call in range(1, 20):
        with monkeypatch.context() as patch:
            FailingSync(patch, name).fail_at(call)
            try:
                create_backend(url, None)
            except StorageError:
                if name == "fdatasync" or kind != "file":
                    assert list(place.iterdir()) == []
                if kind == "file":
                    (place / "node.bkp").unlink(missing_ok=True)
            else:
                assert call > 1
                break
    assert is_there({path.name: b"" for path in place.iterdir()}, kind)


@pytest.mark.parametrize("call", range(1, 6))
def test_failed_sync_in_a_compaction_leaves_the_old_or_the_new_backup(
    url: str, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    base = Change(4, image("before the head"), None)
    before = told_by(url)
    after = [*told([base]), before[-1]]
    with open_writer(url) as writer:
        FailingSync(monkeypatch).fail_at(call)
        try:
            with open_reader(url) as reader:
                take_over(writer, prepared(reader, base, foreign_keys=True))
        except StorageError:
            assert told_by(url) == before
        else:
            assert told_by(url) == after


def test_failed_sync_of_the_directory_ends_the_writer(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Change(4, image("before the head"), None)
    before = told_by(url)
    with open_writer(url) as writer:
        with open_reader(url) as reader:
            staged = prepared(reader, base, foreign_keys=True)
        FailingSync(monkeypatch, "fsync").fail_at(1)
        with pytest.raises(StorageError):
            take_over(writer, staged)
        with pytest.raises(StorageError):
            writer.add_change(payment(6))
    assert told_by(url) in (before, [*told([base]), before[-1]])


def test_failed_sync_of_a_restored_database_leaves_nothing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "restored"
    place.mkdir()
    with open_reader(url) as backend:
        FailingSync(monkeypatch).fail_at(1)
        with pytest.raises(StorageError):
            restore(backend, str(place))
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_message_names_the_step_and_the_reason(
    url: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def failing(_fd: int, _buffers: object, _offset: int) -> int:
        raise OSError(number, os.strerror(number))

    with open_writer(url) as backend:
        backend.add_change(payment(6))
        monkeypatch.setattr(os, "pwritev", failing)
        with pytest.raises(StorageError, match=f"append (entry|record).*{os.strerror(number)}"):
            backend.add_change(payment(7))


def test_short_writes_are_continued(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the system's cache they are short by whole blocks."""
    pwritev = os.pwritev
    seen = []

    def short(fd: int, buffers: list[bytes], offset: int) -> int:
        with memoryview(buffers[0]) as first:
            length = max(1, len(first) // 3)
            if len(first) % _BLOCK_BYTES == 0:
                length = -(-length // _BLOCK_BYTES) * _BLOCK_BYTES
            seen.append(length < sum(map(len, buffers)))
            return pwritev(fd, [first[:length]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    change = payment(6, long_text(6, 30_000))
    append(url, [change])
    assert told_by(url)[-1:] == told([change])
    assert any(seen)
