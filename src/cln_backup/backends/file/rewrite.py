"""Writes files of format 1 beside a backup: new, repaired and set-aside ones.

Each is built under a temporary name, synced, and only then given its final name.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends.file.entries import entries
from cln_backup.backends.writer import require_locks
from cln_backup.formats import v1
from cln_backup.model.change import FOREIGN_KEYS_OFF
from cln_backup.model.errors import StorageError
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from cln_backup.backends.file.entries import Entry
    from cln_backup.backends.file.scan import Layout
    from cln_backup.model.change import Change

_PIECE_BYTES = 1 << 18


class Staged(NamedTuple):
    """A replacement that is ready beside a file: the content of a ticket.

    Attributes:
        name: its path.
        source: the inode of the file that it was made from.
        fold_bytes: the start of the part of the file that is copied unchanged.
        copied_bytes: the end of the part that was copied so far.
        shift_bytes: how much later (negative: earlier) a change is in the replacement.
        folded: the number of changes that the replacement has less.
    """

    name: str
    source: int
    fold_bytes: int
    copied_bytes: int
    shift_bytes: int
    folded: int


_EMPTY = v1.Header(0, v1.HEADER_BYTES, 0, 0, 0)


def create(path: str, base: Change | None) -> None:
    """Makes a new file, empty or with a snapshot. Durable, with its name, when it returns.

    If the file system has no locks, without which no writer could start, nothing is made.
    """
    fd, built = fsio.create_beside(path, "unfinished", op="create backup")
    try:
        header = _EMPTY
        require_locks(fd, path)
        _write_blank_header(fd)
        if base is not None:
            end = write_snapshot(fd, base, v1.HEADER_BYTES)
            header = v1.Header(base.version, end, 0, v1.HEADER_BYTES, 1)
        fsio.write_at(fd, [v1.pack_header(header)], 0, op="write header")
        if base is not None and base.stored_ms:
            fsio.set_time(fd, base.stored_ms)
        fsio.sync(fd, op="sync new backup")
        fsio.publish(built, path, op="publish new backup")
    except BaseException:
        fsio.remove(built, op="remove unfinished backup")
        raise
    finally:
        os.close(fd)


def withdraw(path: str, made: os.stat_result) -> None:
    """Removes a file that `create` made, unless another one has replaced it. Durable."""
    if os.path.samestat(os.lstat(path), made):
        fsio.remove(path, op="remove unfinished backup")
        fsio.sync_directory(os.path.dirname(path), op="remove unfinished backup")


def write_snapshot(fd: int, change: Change, start: int) -> int:
    """Writes a snapshot's entry; returns the offset after it. Synced piece by piece."""
    assert change.snapshot is not None
    size = change.snapshot.size_bytes
    head = v1.pack_entry_head(size, change.version, v1.SNAPSHOT)
    end = fsio.write_at(fd, [head], start, op="write snapshot")
    for chunk in change.snapshot.chunks():
        end = fsio.write_at(fd, [chunk], end, op="write snapshot")
        fsio.sync(fd, op="sync snapshot")
    if end != start + v1.ENTRY_BYTES + size:
        raise StorageError(
            f"The database changed while it was read: expected {size} bytes, got "
            f"{end - start - v1.ENTRY_BYTES}. The snapshot is not used; try again."
        )
    return end


def repair(fd: int, path: str, layout: Layout) -> tuple[int, str]:
    """Rewrites the file without stale transactions; the original is kept.

    Returns the new file's descriptor, and the name of the original. Durable when it returns.
    """
    new_fd, built = fsio.create_beside(path, "unfinished", op="create repaired backup", like=path)
    try:
        header = _EMPTY
        _write_blank_header(new_fd)
        for entry in entries(fd, layout.end_bytes):
            if entry.stale:
                continue
            start = header.offset_bytes
            end = _copy(fd, entry.offset_bytes, entry.end_bytes, new_fd, start, op="repair")
            header = v1.Header(entry.version, end, header.version, start, header.version_count + 1)
        fsio.write_at(new_fd, [v1.pack_header(header)], 0, op="write header")
        fsio.keep_times(new_fd, fd)
        fsio.sync(new_fd, op="sync repaired backup")
        kept = fsio.keep(path, f"{path}.before-repair", op="keep damaged backup")
        fsio.replace(built, path, op="publish repaired backup")
    except BaseException:
        os.close(new_fd)
        fsio.remove(built, op="remove unfinished repair")
        raise
    return new_fd, kept


def start_over(path: str, base: Change) -> tuple[int, str]:
    """Replaces the file by one that holds only a snapshot; the original is kept.

    Returns the new file's descriptor, and the name of the original. Durable when it returns.
    """
    new_fd, built = fsio.create_beside(path, "unfinished", op="create new backup", like=path)
    try:
        _write_blank_header(new_fd)
        end = write_snapshot(new_fd, base, v1.HEADER_BYTES)
        header = v1.Header(base.version, end, 0, v1.HEADER_BYTES, 1)
        fsio.write_at(new_fd, [v1.pack_header(header)], 0, op="write header")
        fsio.sync(new_fd, op="sync new backup")
        kept = fsio.keep(path, f"{path}.before-undo", op="keep earlier history")
        fsio.replace(built, path, op="publish new backup")
    except BaseException:
        os.close(new_fd)
        fsio.remove(built, op="remove unfinished backup")
        raise
    return new_fd, kept


def set_aside(fd: int, path: str, entry: Entry) -> str:
    """Copies an entry into a file of format 1 of its own; returns its name. Durable."""
    start = v1.HEADER_BYTES
    end = start + entry.end_bytes - entry.offset_bytes
    header = v1.pack_header(v1.Header(entry.version, end, 0, start, 1)).ljust(start, b"\x00")
    name = f"{path}.dropped-{entry.version}"
    return _keep_part(fd, entry.offset_bytes, entry.end_bytes, path, name, header)


def keep_torn(fd: int, path: str, layout: Layout) -> str:
    """Copies the torn end after the last entry to a file; returns its name. Durable."""
    version = 0 if layout.head is None else layout.head.version
    name = f"{path}.torn-after-{version}"
    return _keep_part(fd, layout.end_bytes, layout.size_bytes, path, name, b"")


def _keep_part(fd: int, start: int, end: int, path: str, name: str, header: bytes) -> str:
    new_fd, built = fsio.create_beside(path, "unfinished", op="create set-aside file", like=path)
    try:
        fsio.write_at(new_fd, [header], 0, op="set aside")
        _copy(fd, start, end, new_fd, len(header), op="set aside")
        fsio.sync(new_fd, op="sync set-aside file")
        return fsio.keep(built, name, op="keep set-aside file")
    finally:
        os.close(new_fd)
        fsio.remove(built, op="remove unfinished set-aside file")


def stage(
    fd: int, path: str, head: Entry, version_count: int, base: Change | None, *, foreign_keys: bool
) -> Staged:
    """Builds the replacement; `head` is the backup's, `version_count` its number of changes."""
    new_fd, built = fsio.create_beside(path, "compacting", op="create compacted backup", like=path)
    try:
        _write_blank_header(new_fd)
        end = v1.HEADER_BYTES
        count = 0
        if base is not None:
            end = write_snapshot(new_fd, base, end)
            count = 1
            if not foreign_keys:
                payload = v1.pack_transaction([FOREIGN_KEYS_OFF])
                rider = v1.pack_entry_head(len(payload), base.version, v1.TRANSACTION)
                end = fsio.write_at(new_fd, [rider, payload], end, op="write rider")
                count = 2
        fold = head.offset_bytes
        source = os.fstat(fd).st_ino
        folded = version_count - 1 - count
        staged = Staged(built, source, fold, fold, end - fold, folded)
        return _stage_more(fd, new_fd, staged)
    except BaseException:
        fsio.remove(built, op="remove unfinished compaction")
        raise
    finally:
        os.close(new_fd)


def stage_more(fd: int, staged: Staged) -> Staged:
    """See `Reader.prepare_more`."""
    new_fd = fsio.open_existing(staged.name, writable=True, op="open compacted backup")
    try:
        return _stage_more(fd, new_fd, staged)
    except BaseException:
        fsio.remove(staged.name, op="remove unfinished compaction")
        raise
    finally:
        os.close(new_fd)


def _stage_more(fd: int, new_fd: int, staged: Staged) -> Staged:
    """Copies the complete entries."""
    end = staged.copied_bytes
    size = fsio.size_bytes(fd)
    while end + v1.ENTRY_BYTES <= size:
        head = fsio.read_at(fd, v1.ENTRY_BYTES, end, op="read backup")
        behind = end + v1.ENTRY_BYTES + v1.unpack_entry_head(head).length_bytes
        if behind > size:
            break
        end = behind
    while True:  # a concurrent writer waits for one piece at most
        piece = min(end, staged.copied_bytes + _PIECE_BYTES)
        copy_to_staged(fd, new_fd, staged, piece)
        fsio.sync(new_fd, op="sync compacted backup")
        staged = staged._replace(copied_bytes=piece)
        if piece == end:
            return staged


def copy_to_staged(fd: int, new_fd: int, staged: Staged, end: int) -> None:
    """Copies the part of the backup up to `end` that its replacement lacks. Not durable.

    Raises:
        StorageError: the replacement is not the staged file.
    """
    start = staged.copied_bytes
    to = start + staged.shift_bytes
    made_from_this = staged.source == os.fstat(fd).st_ino
    if not made_from_this or fsio.size_bytes(new_fd) != to or start > end:
        raise StorageError(f"{staged.name} is not the staged file; the backup is unchanged.")
    _copy(fd, start, end, new_fd, to, op="copy to compacted backup")


def discard(path: str) -> None:
    """Removes the replacements beside a backup."""
    import glob

    for name in glob.glob(f"{glob.escape(path)}.compacting*"):
        fsio.remove(name, op="remove unfinished compaction")


def _copy(fd: int, start: int, end: int, to_fd: int, to_offset: int, *, op: str) -> int:
    for chunk in fsio.chunks_at(fd, end - start, start, op="read backup"):
        to_offset = fsio.write_at(to_fd, [chunk], to_offset, op=op)
    return to_offset


def _write_blank_header(fd: int) -> None:
    fsio.write_at(fd, [bytes(v1.HEADER_BYTES)], 0, op="write header")
