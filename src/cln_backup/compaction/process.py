"""The second process of a compaction: `python -m cln_backup.compaction.process URL DIR WHEN`.

It does the long part beside a node's writer, which comes first: it folds the history at the lowest
priority (in DIR, unless that is empty), stages a replacement beside the backup in small pieces with
pauses, and gives the room of what is no longer needed back in the same way.

It speaks lines of JSON with the writer, which has the last word: `{"staged": …}` comes from here,
`more` lets it copy what came since, `done` lets it go; at the end of its input, what was built is
of no use. Where a server did the work, `{"compacted": …}` comes. Where WHEN is `if-it-pays` and a
compaction does not, what was staged is removed, and `{"would_be": …}` comes.
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
from typing import TYPE_CHECKING, Any

from cln_backup.model.errors import BackupError, Interrupted
from cln_backup.storage import scratch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from cln_backup.backends.contract import Backend, Staged
    from cln_backup.model.change import Change, Snapshot

_PIECE_BYTES = 1 << 16
_PAUSE = 4.0
_STOPPED = "The compaction was stopped; the backup is as before."


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
                scratch.require_room(self._place, op="compact")
                given = time.monotonic()
                yield chunk[start : start + _PIECE_BYTES]
                time.sleep((time.monotonic() - given) * _PAUSE)


class _Process:
    def __init__(self, url: str, scratch_dir: str, when: str) -> None:
        self._url = url
        self._scratch_dir = scratch_dir or None
        self._if_it_pays = when == "if-it-pays"
        self._stopped = False
        self._requests: SimpleQueue[str] = SimpleQueue()

    def run(self) -> int:
        """Stages a replacement for the backup; returns the exit code."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._stop)
        try:
            Thread(target=_listen, args=(self._requests,), daemon=True).start()
            with (
                ThreadPoolExecutor(1, initializer=_yield_to_others) as low_priority,
                low_priority.submit(_open, self._url).result() as reader,
            ):
                self._work(reader, low_priority)
        except BackupError as error:
            _say({"error": str(error)})
            return error.exit_code
        return 0

    def _work(self, reader: Backend, low_priority: ThreadPoolExecutor) -> None:
        from cln_backup.compaction.compact import after, fold, pays, worth_folding

        statistics = reader.compact()
        if statistics is not None:
            _say({"compacted": statistics})
            return
        staged = None
        if worth_folding(reader):
            place = scratch.place(self._scratch_dir, reader.scratch_dir)
            with scratch.directory(place, op="compact") as directory:
                base, foreign_keys = low_priority.submit(
                    fold, reader, directory, self._go_on
                ).result()
                staged = _stage(reader, base, foreign_keys=foreign_keys)
                scratch.empty(directory, op="compact")
        if staged is not None and self._if_it_pays and not pays(staged):
            would_be = after(reader, staged)
            scratch.empty_file(staged.name, op="compact")
            reader.discard()
            _say({"would_be": would_be})
            return
        _say({"staged": None if staged is None else staged._asdict()})
        while self._requests.get() == "more\n" and staged is not None:
            staged = reader.stage_more(staged)
            _say({"staged": staged._asdict()})

    def _go_on(self, _change: Change) -> None:
        """Called after each change that was replayed, in the thread that replays."""
        if self._stopped:
            raise Interrupted(_STOPPED)

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stopped = True
        raise Interrupted(_STOPPED)


def _open(url: str) -> Backend:
    from cln_backup.backends import open_backend

    return open_backend(url)


def _stage(reader: Backend, base: Change | None, *, foreign_keys: bool) -> Staged:
    """Stages the replacement at the pace that a node's writer leaves."""
    from cln_backup.model.change import Change

    if base is not None:
        assert base.snapshot is not None
        assert reader.storage_dir is not None
        paced = _PacedSnapshot(base.snapshot, reader.storage_dir)
        base = Change(base.version, paced, None, base.stored_ms)
    return reader.stage(base, foreign_keys=foreign_keys)


def _listen(requests: SimpleQueue[str]) -> None:
    """Passes the writer's lines on; without a word from it, what is built is of no use."""
    for line in sys.stdin:
        requests.put(line)
        if line == "done\n":
            return
    os.kill(os.getpid(), signal.SIGTERM)


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    sys.exit(_Process(*sys.argv[1:4]).run())
