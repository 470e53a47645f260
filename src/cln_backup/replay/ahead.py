"""Reads changes ahead in a child process, while this one processes earlier ones.

Unsealing and inflating the changes takes about a fifth of the time of their replay by SQLite, and
each of the two is faster with a processor's caches to itself.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import select
from typing import TYPE_CHECKING, Final

from cln_backup.model.change import Change
from cln_backup.model.errors import BackupError, StorageError
from cln_backup.process.child import Child
from cln_backup.replay.messages import (
    SAID,
    End,
    From,
    Piece,
    RawRun,
    Run,
    Said,
    SnapshotBegin,
    Standing,
    Start,
    standing_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cln_backup.backends.contract import Reader
    from cln_backup.model.change import Snapshot

_MANY_CHANGES: Final = 4_000
"""Replaying fewer takes about the time that a process takes to start."""

_LOOK_EVERY: Final = 64
_PATIENCE_MS: Final = 0
_LEAD_CHANGES: Final = 200


@contextlib.contextmanager
def read_ahead(reader: Reader, *, head: bool = True) -> Iterator[Iterator[Change]]:
    """The changes of a backup, as from `Reader.stream_changes`.

    If there is a second processor, a child process reads all but the first changes of a long
    history; it ends with the block. It opens the backup again. Until it is ready, and if it cannot
    open the backup or finds a different history than this process has opened, this one reads.

    Raises:
        BackupError: as `Reader.stream_changes` raises, from the iterator; also `StorageError` if
            the child was killed.
    """
    changes = reader.stream_changes(head=head)
    child = None
    if reader.standing.version_count >= _MANY_CHANGES and _processors() > 1:
        child = _started(reader, head=head)
    if child is None:
        yield changes
    else:
        with child:
            yield _continued(reader, changes, child, head=head)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _started(reader: Reader, *, head: bool) -> Child[Said] | None:
    """A child that opens the backup; `None` if there is none."""
    if reader.opening is None:
        return None
    start = Start(reader.opening, head)
    try:
        return Child[Said]("cln_backup.replay.reading", start, SAID, work="reads the backup")
    except StorageError:
        return None


def _continued(
    reader: Reader, changes: Iterator[Change], child: Child[Said], *, head: bool
) -> Iterator[Change]:
    """The changes as this process reads them, and as the child does from when it is ready."""
    said = select.poll()
    said.register(child, select.POLLIN)
    asked_from: int | None = None
    for number, change in enumerate(changes):
        if asked_from is None and number % _LOOK_EVERY == 0 and said.poll(_PATIENCE_MS):
            # It reads several times faster than this process has replayed up to here.
            asked_from = change.version + number // 4 + _LEAD_CHANGES
            if not _reads_on(child, standing_of(reader), asked_from):
                yield change
                break
        if asked_from is not None and change.version >= asked_from:
            again = functools.partial(reader.stream_changes, asked_from, head=head)
            yield from _received(child, again)
            return
        yield change
    yield from changes


def _reads_on(child: Child[Said], standing: Standing, start: int) -> bool:
    """Makes the child send its changes, if it has opened this very history."""
    try:
        if child.receive() != standing:
            return False
        child.send(From(start))
    except BackupError:
        return False
    return True


def _received(child: Child[Said], again: Callable[[], Iterator[Change]]) -> Iterator[Change]:
    """The changes that the child sends; `again` reads the same changes in this process."""
    number = 0
    while not isinstance(said := child.receive(), End):
        if isinstance(said, Run):
            number += len(said.changes)
            for version, stored_ms, transaction in said.changes:
                yield Change(version, None, transaction, stored_ms)
        elif isinstance(said, RawRun):
            number += len(said.changes)
            for version, stored_ms, raw in said.changes:
                texts = tuple(text.decode("utf-8", "surrogateescape") for text in raw)
                yield Change(version, None, texts, stored_ms)
        elif isinstance(said, SnapshotBegin):
            this_one = functools.partial(_snapshot_at, again, number)
            number += 1
            snapshot = _SentSnapshot(child, said.size_bytes, this_one)
            yield Change(said.version, snapshot, None, said.stored_ms)
            for _ in snapshot.rest():  # the caller asked for the next change: skip the rest
                pass


def _snapshot_at(read: Callable[[], Iterator[Change]], number: int) -> Snapshot:
    snapshot = next(itertools.islice(read(), number, None)).snapshot
    assert snapshot is not None
    return snapshot


class _SentSnapshot:
    """A snapshot that the child sends once; a second time, this process reads it."""

    def __init__(self, child: Child[Said], size_bytes: int, again: Callable[[], Snapshot]) -> None:
        self.size_bytes = size_bytes
        self._child = child
        self._left_bytes = size_bytes
        self._again = again
        self._is_begun = False

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes in order."""
        if self._is_begun:
            yield from self._again().chunks()
        else:
            self._is_begun = True
            yield from self.rest()

    def rest(self) -> Iterator[bytes]:
        """The bytes that the child has not sent yet."""
        while self._left_bytes:
            piece = self._child.receive()
            assert isinstance(piece, Piece)
            self._left_bytes -= len(piece.data)
            yield piece.data
