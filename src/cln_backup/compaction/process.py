"""The child process of a compaction: `python -m cln_backup.compaction.process`.

It does the long part beside a node's writer, which has priority: it folds the history at the lowest
priority, stages a replacement beside the backup in small pieces with pauses, and frees the space of
old files in the same way. The writer decides; if the writer ends, the replacement is removed
(`messages` has their messages).
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from threading import get_native_id
from typing import TYPE_CHECKING

from cln_backup.compaction.messages import Compacted, More, NotWorthIt, Ready, Start
from cln_backup.compaction.pace import PacedSnapshot
from cln_backup.process.parent import Parent, serve
from cln_backup.storage import scratch

if TYPE_CHECKING:
    from concurrent.futures import Future

    from cln_backup.backends.contract import Reader
    from cln_backup.backends.ticket import Folded
    from cln_backup.model.change import Change


def _yield_to_others() -> None:
    """Lowers the priority of this thread, which does the computing.

    On Linux it applies to a thread. The thread that writes to the disk keeps its priority: while it
    holds the file system's journal, the node's writer would wait until the processor is idle.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, get_native_id(), 19)


def _run(start: Start, parent: Parent[More]) -> None:
    """Prepares a compaction."""
    with (
        ThreadPoolExecutor(1, initializer=_yield_to_others) as low_priority,
        low_priority.submit(_open, start).result() as reader,
    ):
        _work(start, parent, reader, low_priority)


def _work(
    start: Start, parent: Parent[More], reader: Reader, low_priority: ThreadPoolExecutor
) -> None:
    from cln_backup.compaction.compact import fold

    def go_on(_change: Change) -> None:
        """Called after each replayed change, in the replaying thread."""
        parent.check()

    used: list[str] = []
    with ExitStack() as work:

        def fold_here(reader: Reader) -> Folded:
            place = scratch.place(start.scratch_dir, reader.place.scratch_dir)
            directory = work.enter_context(scratch.directory(place, op="compact"))
            used.append(directory)
            # The other processors are for the node.
            keep = start.if_it_pays
            folding = low_priority.submit(
                fold, reader, directory, go_on, alone=True, keep_migration=keep
            )
            return _paced(reader, folding)

        ticket = reader.prepare_compaction(fold_here)
        for directory in used:
            scratch.empty(directory, op="compact")
    if ticket.done is not None:
        parent.say(Compacted(ticket.done))
        return
    if start.if_it_pays and not ticket.pays():
        reader.discard(ticket)
        parent.say(NotWorthIt(ticket.after))
        return
    parent.say(Ready(ticket))
    while parent.next() is not None:
        ticket = reader.prepare_more(ticket)
        parent.say(Ready(ticket))


def _open(start: Start) -> Reader:
    from cln_backup.backends import place_at

    return place_at(start.url).open_reader(secret=start.secret)


def _paced(reader: Reader, folding: Future[Folded]) -> Folded:
    """The folded history, with its snapshot at a pace that does not disturb a node's writer."""
    folded = folding.result()
    base, storage_dir = folded.base, reader.place.storage_dir
    if base is not None:
        assert base.snapshot is not None
        paced = PacedSnapshot(base.snapshot, storage_dir)
        folded = folded._replace(base=replace(base, snapshot=paced))
    return folded


if __name__ == "__main__":
    serve(_run, Start, More)
