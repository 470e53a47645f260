"""The child process of a compaction: `python -m cln_backup.compaction.process`.

It does the long part beside a node's writer, which has priority: it folds the history at the lowest
priority, stages a replacement beside the backup in small pieces with pauses, and frees the space of
old files in the same way. The writer decides; if the writer ends, the replacement is removed
(`messages` has their messages).
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import get_native_id
from typing import TYPE_CHECKING

from cln_backup.compaction.messages import Compacted, More, NotWorthIt, Ready, Start
from cln_backup.process.parent import Parent, serve
from cln_backup.storage import scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.contract import Backend, Staged
    from cln_backup.model.change import Change, Snapshot

_PIECE_BYTES = 1 << 16
_PAUSE = 4.0


def _yield_to_others() -> None:
    """Lowers the priority of this thread, which does the computing.

    On Linux it applies to a thread. The thread that writes to the disk keeps its priority: while it
    holds the file system's journal, the node's writer would wait until the processor is idle.
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


def _run(start: Start, parent: Parent[More]) -> None:
    """Stages a replacement for the backup."""
    with (
        ThreadPoolExecutor(1, initializer=_yield_to_others) as low_priority,
        low_priority.submit(_open, start.url).result() as reader,
    ):
        _work(start, parent, reader, low_priority)


def _work(
    start: Start, parent: Parent[More], reader: Backend, low_priority: ThreadPoolExecutor
) -> None:
    from cln_backup.compaction.compact import after, fold, pays, worth_folding

    def go_on(_change: Change) -> None:
        """Called after each replayed change, in the replaying thread."""
        parent.check()

    statistics = reader.compact()
    if statistics is not None:
        parent.say(Compacted(statistics))
        return
    staged = None
    if worth_folding(reader):
        place = scratch.place(start.scratch_dir, reader.scratch_dir)
        with scratch.directory(place, op="compact") as directory:
            base, foreign_keys = low_priority.submit(
                # The other processors are for the node.
                fold,
                reader,
                directory,
                go_on,
                alone=True,
            ).result()
            staged = _stage(reader, base, foreign_keys=foreign_keys)
            scratch.empty(directory, op="compact")
    if staged is not None and start.if_it_pays and not pays(staged):
        would_be = after(reader, staged)
        scratch.empty_file(staged.name, op="compact")
        reader.discard()
        parent.say(NotWorthIt(would_be))
        return
    parent.say(Ready(staged))
    while parent.next() is not None and staged is not None:
        staged = reader.stage_more(staged)
        parent.say(Ready(staged))


def _open(url: str) -> Backend:
    from cln_backup.backends import open_backend

    return open_backend(url)


def _stage(reader: Backend, base: Change | None, *, foreign_keys: bool) -> Staged:
    """Stages the replacement at a pace that does not disturb a node's writer."""
    from cln_backup.model.change import Change

    if base is not None:
        assert base.snapshot is not None
        assert reader.storage_dir is not None
        paced = _PacedSnapshot(base.snapshot, reader.storage_dir)
        base = Change(base.version, paced, None, base.stored_ms)
    return reader.stage(base, foreign_keys=foreign_keys)


if __name__ == "__main__":
    serve(_run, Start, More)
