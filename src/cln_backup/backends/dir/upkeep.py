"""Maintenance beside a writer: `python -m cln_backup.backends.dir.upkeep`.

A child process at the lowest priority: prepares segments and removes expired files. It needs no
key: the names of the files are enough. Idempotent: the next run finishes interrupted work. When the
writer, its parent, has ended, it prepares nothing more: by then the directory may belong to another
writer, or be removed as unfinished.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from cln_backup.backends.dir.store import (
    SPARE,
    SPARE_BYTES,
    base_name,
    list_files,
    segment_name,
    snapshot_name,
)
from cln_backup.process.channel import Message
from cln_backup.storage import directories, fsio
from cln_backup.storage.local_objects import LocalObjects

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.process.parent import Parent
    from cln_backup.storage.objects import Objects

_DAY_S = 86_400
_FEW_FILES = 8
_FEW_BYTES = 4 << 20


class Start(Message):
    """The request: `writer` is the process id of the writer."""

    path: str
    keep: int
    keep_days: int
    writer: int


def make_spare(path: str, writer: int, writer_lives: Callable[[], bool]) -> None:
    """Prepares the file of zeros that becomes the next segment; durable when it returns.

    Does nothing if the writer that this process works for has ended.
    """
    spare = os.path.join(path, SPARE)
    for name in directories.names(path, op="list backup"):
        if not writer_lives():
            return
        if name.startswith(f"{SPARE}.") and not name.endswith(f"-{writer}"):
            fsio.remove(os.path.join(path, name), op="remove unfinished spare")
    if os.path.exists(spare):
        return
    # A name of its own for each process: none writes into a file that became a segment.
    built = f"{spare}.new-{os.getpid()}"
    fd = fsio.create(built, op="create spare")
    try:
        fsio.preallocate(fd, SPARE_BYTES, op="preallocate spare")
        if writer_lives():
            fsio.replace(built, spare, op="publish spare")
        else:
            fsio.remove(built, op="remove unfinished spare")
    except BaseException:
        fsio.remove(built, op="remove unfinished spare")
        raise
    finally:
        os.close(fd)


def expired(objects: Objects, keep: int, keep_days: int) -> list[str]:
    """The names that no kept generation needs, in the order of removal.

    A generation is kept while it is among the `keep` newest besides the current one, or was
    replaced less than `keep_days` ago.
    """
    listing = list_files(objects)
    bases = listing.bases
    now = time.time()
    first_kept = max(0, len(bases) - 1 - keep)
    for index in range(first_kept):
        successor = objects.status(base_name(*bases[index + 1]))
        # Another process may be removing it.
        if successor is not None and now - successor.stored_at < keep_days * _DAY_S:
            first_kept = index
            break
    if not bases:
        return []
    needed_from = bases[first_kept][1]
    names = [base_name(*base) for base in bases[:first_kept]]
    names += [segment_name(number) for number in listing.segments if number < needed_from]
    names += [snapshot_name(*found) for found in listing.snapshots if found[0] < needed_from]
    return names


def removal_takes_long(objects: Objects, keep: int, keep_days: int) -> bool:
    """Whether `remove_expired` may take longer than an append."""
    gone = expired(objects, keep, keep_days)
    found = map(objects.status, gone)
    return len(gone) > _FEW_FILES or any(
        status is not None and status.size_bytes > _FEW_BYTES for status in found
    )


def remove_expired(objects: LocalObjects, keep: int, keep_days: int) -> None:
    """Removes expired files, up to the oldest generation that is being read.

    If the file system has no locks, nothing is removed.
    """
    for name in expired(objects, keep, keep_days):
        if not objects.delete_unheld(name, op="remove expired file"):
            return


def _run(start: Start, parent: Parent[Message]) -> None:
    make_spare(start.path, start.writer, parent.lives)
    remove_expired(LocalObjects(start.path), start.keep, start.keep_days)


if __name__ == "__main__":
    from cln_backup.process.parent import serve

    serve(_run, Start)
