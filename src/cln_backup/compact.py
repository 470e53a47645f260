"""Folds the history of a backup into one snapshot, while its writer goes on.

A second process (`python -m cln_backup.compact URL`) does the long part: it replays everything
before the head into a database and stages a replacement beside the backup. It speaks lines of JSON
with the writer, which has the last word: `{"staged": …}` comes from it, `more` lets it copy what
came since, the end of its input lets it go. Where a server did the work, `{"compacted": …}` comes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Thread, get_native_id
from typing import TYPE_CHECKING, Any, NamedTuple

from cln_backup import fsio
from cln_backup.backends import open_backend
from cln_backup.backends.base import size_of
from cln_backup.change import Change, Kind
from cln_backup.errors import BackupError, Interrupted
from cln_backup.replica import DatabaseFile, replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from cln_backup.backends.base import Backend, Staged, Statistics
    from cln_backup.change import Snapshot


_PIECE_BYTES = 1 << 16
_PAUSE = 4.0
_STOPPED = "The compaction was stopped; the backup is as before."


def compact(
    url: str,
    progress: Callable[[Change], None] | None = None,
    log: Callable[[str], None] = lambda _notice: None,
) -> Statistics:
    """Compacts a backup that no node writes to; the head stays as it is.

    A server compacts by itself, also while a node writes. What was mended when the backup was
    opened is told to `log`. The compacted backup is on stable storage, in the old one's place, when
    this returns.

    Raises:
        WriterConflict: a node writes to it; let its plugin do it (`lightning-cli backup-compact`).
        NotFound, Damaged, ReplayFailed, StorageError: the backup is as before.
    """
    with open_backend(url) as reader:
        statistics = reader.compact()
    if statistics is not None:
        return statistics
    with open_backend(url, writable=True) as writer:
        for notice in writer.notices:
            log(notice)
        before = size_of(writer)
        with open_backend(url) as reader:
            staged = stage(reader, progress)
            if staged is not None:
                writer.replace(staged)
        return {"before": before, "after": size_of(writer)}


def stage(
    reader: Backend,
    progress: Callable[[Change], None] | None = None,
    *,
    beside_a_node: bool = False,
) -> Staged | None:
    """Builds the replacement for a backup; `None` where there is nothing to fold.

    With `beside_a_node`, a node's writer is at work on the same disk and comes first.

    Raises:
        Damaged, ReplayFailed, StorageError: nothing is left behind.
    """
    if reader.head is None or reader.version_count < 2:
        return None
    with fsio.scratch_directory(reader.scratch_dir, op="compact") as directory:
        path = os.path.join(directory, "replica.sqlite3")
        if beside_a_node:
            with ThreadPoolExecutor(1, initializer=_yield_to_others) as pool:
                folded = pool.submit(_fold, reader, path, progress).result()
        else:
            folded = _fold(reader, path, progress)
        if reader.head.kind is Kind.SNAPSHOT:  # which was replayed too, so it can be relied on
            return reader.stage(None, foreign_keys=True)
        snapshot: Snapshot = DatabaseFile(path)
        fsio.require_room(reader.scratch_dir, op="compact", needed_bytes=snapshot.size_bytes)
        if beside_a_node:
            snapshot = _PacedSnapshot(snapshot, reader.scratch_dir)
        base = Change(folded.version, snapshot, None)
        return reader.stage(base, foreign_keys=folded.foreign_keys)


class _Folded(NamedTuple):
    version: int
    foreign_keys: bool


def _fold(reader: Backend, path: str, progress: Callable[[Change], None] | None) -> _Folded:
    """Builds and checks the database that everything before the head makes, or a head snapshot."""
    with_head = reader.head is not None and reader.head.kind is Kind.SNAPSHOT
    changes = reader.stream_changes(head=with_head)
    replica = replay(_with_room(changes, reader.scratch_dir), path, progress)
    try:
        replica.check()
    finally:
        replica.close()
    return _Folded(replica.applied, replica.foreign_keys)


def _with_room(changes: Iterator[Change], place: str) -> Iterator[Change]:
    """Passes the changes on while the disk has room for what they make, and more."""
    for change in changes:
        needed = 0 if change.snapshot is None else change.snapshot.size_bytes
        fsio.require_room(place, op="compact", needed_bytes=needed)
        yield change


def _yield_to_others() -> None:
    """Lowers the priority of this thread, which computes.

    On Linux it is a thread's own. What writes to the disk keeps its priority: while it holds the
    file system's journal, the node's writer would wait until the processor had nothing else to do.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, get_native_id(), 19)


class _PacedSnapshot:
    """A snapshot in small pieces, with pauses that leave the disk to the node's writer."""

    def __init__(self, snapshot: Snapshot, place: str) -> None:
        self._snapshot = snapshot
        self._place = place
        self.size_bytes = snapshot.size_bytes

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes in order; after each piece, a pause in proportion to its writing."""
        for chunk in self._snapshot.chunks():
            for start in range(0, len(chunk), _PIECE_BYTES):
                fsio.require_room(self._place, op="compact")
                given = time.monotonic()
                yield chunk[start : start + _PIECE_BYTES]
                time.sleep((time.monotonic() - given) * _PAUSE)


class _Process:
    """The second process, beside a node."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopped = False
        self._requests: SimpleQueue[str] = SimpleQueue()

    def run(self) -> int:
        """Stages a replacement for the backup; returns the exit code."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._stop)
        Thread(target=_listen, args=(self._requests,), daemon=True).start()
        try:
            with open_backend(self._url) as reader:
                statistics = reader.compact()
                if statistics is not None:
                    _say({"compacted": statistics})
                    return 0
                staged = stage(reader, self._go_on, beside_a_node=True)
                while True:
                    _say({"staged": None if staged is None else staged._asdict()})
                    if self._requests.get() != "more\n" or staged is None:
                        return 0
                    staged = reader.stage_more(staged)
        except BackupError as error:
            _say({"error": str(error)})
            return error.exit_code

    def _go_on(self, _change: Change) -> None:
        """Called after each change that was replayed, in the thread that replays."""
        if self._stopped:
            raise Interrupted(_STOPPED)

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stopped = True
        raise Interrupted(_STOPPED)


def _listen(requests: SimpleQueue[str]) -> None:
    """Passes the writer's lines on; when the writer has gone, nothing that is built is of use."""
    for line in sys.stdin:
        requests.put(line)
    os.kill(os.getpid(), signal.SIGTERM)


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    sys.exit(_Process(sys.argv[1]).run())
