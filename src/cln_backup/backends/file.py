"""`file:///path`: one file of format 1, the one that the community's `backup` plugin writes."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cln_backup import fsio
from cln_backup.backends.base import Backend, Staged, check_follows
from cln_backup.backends.file_scan import Entry, Layout, entries, scan
from cln_backup.backends.writer import WriterLock
from cln_backup.change import FOREIGN_KEYS_OFF, Change, Head, Kind
from cln_backup.errors import (
    AlreadyExists,
    BadUrl,
    Damaged,
    Discontinuity,
    NotFound,
    StorageError,
)
from cln_backup.formats import v1
from cln_backup.statements import foreign_keys_after

if TYPE_CHECKING:
    from collections.abc import Iterator

_READ = "read backup"


def path_of(url: str) -> str:
    """The path in a `file:` URL, taken as it stands: nothing in it is unquoted.

    Raises:
        BadUrl: it names no absolute path, or one that other programs would read differently.
    """
    parts = urlsplit(url)
    path = url[len("file:") :].removeprefix("//" if url.startswith("file://") else "")
    if not path.startswith("/"):
        raise BadUrl(f"{url!r} names no absolute path. Write file:///the/path, with three slashes.")
    if parts.query or parts.fragment or any(sign in path for sign in "?#\r\n\t\x00"):
        raise BadUrl(f"{url!r} has a sign in its path (?, #, tab, line end) that a URL cuts off.")
    if path.endswith("/") or os.path.isdir(path):
        raise BadUrl(f"{url!r} is a directory; name the file in it.")
    return path


class FileSnapshot:
    """The snapshot that stands in an open file; to be read before the backup is closed."""

    def __init__(self, fd: int, path: str, entry: Entry) -> None:
        self._fd = fd
        self._path = path
        self._entry = entry

    @property
    def size_bytes(self) -> int:
        """Size of the database file."""
        return self._entry.length_bytes

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes in order, in pieces."""
        entry = self._entry
        got = 0
        for chunk in fsio.chunks_at(self._fd, entry.length_bytes, entry.payload_bytes, op=_READ):
            got += len(chunk)
            yield chunk
        if got != entry.length_bytes:
            raise Damaged(
                f"{self._path} became shorter while it was read.",
                offset_bytes=entry.payload_bytes + got,
            )


class FileBackend(Backend):
    """A backup in one file.

    An append writes the entry and the header, then syncs both at once: where only one of the two
    reached the disk, the other tells (`file_scan`).
    """

    def __init__(self, url: str, path: str, fd: int, lock: WriterLock | None) -> None:
        self.url = url
        self.notices = []
        self._path = path
        self._fd = fd
        self._lock = lock
        self._finished = False

    @classmethod
    def create(cls, url: str, base: Change | None) -> None:
        """See `Backend.create`. The file is built beside as `PATH.new`."""
        path = path_of(url)
        if os.path.lexists(path):
            raise AlreadyExists(
                f"A file stands at {path} and is left as it is. If it is a backup, it can be used "
                "as it is; otherwise choose another name."
            )
        built = f"{path}.new"
        fd = fsio.create(built, op="create backup", exclusive=False)
        try:
            header = v1.Header(0, v1.HEADER_BYTES, 0, 0, 0)
            fsio.write_at(fd, [bytes(v1.HEADER_BYTES)], 0, op="write header")
            if base is not None:
                end = _write_snapshot(fd, base, v1.HEADER_BYTES)
                header = v1.Header(base.version, end, 0, v1.HEADER_BYTES, 1)
            fsio.write_at(fd, [v1.pack_header(header)], 0, op="write header")
            fsio.sync(fd, op="sync new backup")
            fsio.publish(built, path, op="publish new backup")
        except BaseException:
            fsio.remove(built, op="remove unfinished backup")
            raise
        finally:
            os.close(fd)

    @classmethod
    def open(cls, url: str, *, writable: bool) -> FileBackend:
        """See `Backend.open`."""
        path = path_of(url)
        if not os.path.exists(path):
            raise NotFound(
                f"There is no backup at {path}. `backup-cli init` makes one; if there was one, "
                "look whether its disk is mounted."
            )
        fd = fsio.open_existing(path, writable=writable, op="open backup")
        lock = None
        try:
            if writable:
                lock = WriterLock(path)
                os.close(fd)  # a compaction may have put another file here before the lock
                fd = -1
                fd = fsio.open_existing(path, writable=True, op="open backup")
            backend = cls(url, path, fd, lock)
            backend._take_stock()
        except BaseException:
            if fd >= 0:
                os.close(fd)
            if lock is not None:
                lock.release()
            raise
        return backend

    def _take_stock(self) -> None:
        layout = scan(self._fd, self._path)
        if self._lock is not None:
            self.discard()
            if layout.stale:
                self._repair(layout)
                layout = scan(self._fd, self._path)
        self._end = layout.end_bytes
        self._head = layout.head
        self._before = layout.before
        self._may_rewind = layout.header.prev_offset_bytes != 0 and not layout.torn_bytes
        self._set_position(layout.version_count)
        if layout.torn_bytes:
            self.notices.append(
                f"The backup ends with {layout.torn_bytes} bytes of a change that was cut while it "
                "was written, or is being written now. The node was not answered, so nothing is "
                f"lost; the backup is at version {self.version}."
            )
        if self._lock is not None:
            header = self._header()
            if header[:2] != layout.header[:2] or layout.torn_bytes:
                self._write_header(header, op="mend header")
                fsio.sync(self._fd, op="sync mended header")
            if layout.torn_bytes:
                fsio.truncate(self._fd, self._end, op="cut off torn entry")
                fsio.sync(self._fd, op="sync cut")

    def _repair(self, layout: Layout) -> None:
        """Writes the file anew without the transactions that were never committed."""
        built = f"{self._path}.repairing"
        fd = fsio.create(built, op="create repaired backup", exclusive=False)
        try:
            header = v1.Header(0, v1.HEADER_BYTES, 0, 0, 0)
            fsio.write_at(fd, [bytes(v1.HEADER_BYTES)], 0, op="write header")
            for entry in entries(self._fd, layout.end_bytes):
                if entry.stale:
                    continue
                start = header.offset_bytes
                end = self._copy(entry.offset_bytes, entry.end_bytes, fd, start, op="copy entry")
                header = v1.Header(
                    entry.version, end, header.version, start, header.version_count + 1
                )
            fsio.write_at(fd, [v1.pack_header(header)], 0, op="write header")
            fsio.sync(fd, op="sync repaired backup")
            kept = fsio.keep(self._path, f"{self._path}.before-repair", op="keep damaged backup")
            fsio.replace(built, self._path, op="publish repaired backup")
        except BaseException:
            os.close(fd)
            fsio.remove(built, op="remove unfinished repair")
            raise
        os.close(self._fd)
        self._fd = fd
        self.notices.append(
            f"The backup held {layout.stale} transactions that the node never committed, as the "
            "community's plugin leaves them after a crash. They were taken out; the file as it was "
            f"is kept as {kept}."
        )

    def _copy(self, start: int, end: int, to_fd: int, to_offset: int, *, op: str) -> int:
        for chunk in fsio.chunks_at(self._fd, end - start, start, op=_READ):
            to_offset = fsio.write_at(to_fd, [chunk], to_offset, op=op)
        return to_offset

    def _set_position(self, version_count: int) -> None:
        self.version = 0 if self._head is None else self._head.version
        before = self._before if self._may_rewind else None
        self.prev_version = 0 if before is None else before.version
        self.version_count = version_count

    def _header(self) -> v1.Header:
        """What the header must say now; the pair for a rewind is 0 where there is none."""
        may_rewind = self._may_rewind and self._head is not None
        prev_offset = self._head.offset_bytes if may_rewind and self._head is not None else 0
        return v1.Header(
            self.version, self._end, self.prev_version, prev_offset, self.version_count
        )

    def _write_header(self, header: v1.Header, *, op: str) -> None:
        fsio.write_at(self._fd, [v1.pack_header(header)], 0, op=op)

    def _require_writer(self) -> None:
        assert self._lock is not None, "opened for reading"
        if self._finished:
            raise StorageError(
                f"A write to {self._path} failed before, and what reached the disk is not known; "
                "nothing more is written until the backup is opened anew."
            )

    @property
    def head(self) -> Head | None:
        """See `Backend.head`."""
        if self._head is None:
            return None
        return Head(self._head.version, self._head.kind, self._head.foreign_keys)

    @property
    def size_bytes(self) -> int:
        """The file's length."""
        return fsio.size_bytes(self._fd)

    @property
    def last_change_at(self) -> float | None:
        """When the file was last written, as the file system has it."""
        return os.fstat(self._fd).st_mtime if self.version_count else None

    @property
    def scratch_dir(self) -> str:
        """The directory that holds the file."""
        return os.path.dirname(self._path)

    @property
    def _staging_path(self) -> str:
        return f"{self._path}.compacting"

    def add_change(self, change: Change) -> None:
        """See `Backend.add_change`. One write of the entry, one of the header, one sync."""
        self._require_writer()
        check_follows(change, self.version, empty=self._head is None)
        start = self._end
        kind = change.kind
        foreign_keys = self._head is None or self._head.foreign_keys
        if change.transaction is None:
            with self._last_write():
                end = _write_snapshot(self._fd, change, start)
                fsio.sync(self._fd, op="sync snapshot")
            foreign_keys = True
        else:
            payload = v1.pack_transaction(change.transaction)
            if kind is Kind.RIDER:
                foreign_keys = foreign_keys_after(change.transaction, foreign_keys)
            head = v1.pack_entry_head(len(payload), change.version, v1.TRANSACTION)
            with self._last_write():
                end = fsio.write_at(self._fd, (head, payload), start, op="append entry")
        entry = Entry(start, end - start - v1.ENTRY_BYTES, change.version, kind, foreign_keys)
        count = self.version_count + 1
        with self._last_write():
            header = v1.Header(change.version, end, self.version, start, count)
            self._write_header(header, op="write header")
            fsio.sync(self._fd, op="sync change")
        self._before, self._head, self._end, self._may_rewind = self._head, entry, end, True
        self._set_position(count)

    @contextlib.contextmanager
    def _last_write(self) -> Iterator[None]:
        """Whatever stops in here, an error or a signal, makes it this writer's last write."""
        self._finished = True
        yield
        self._finished = False

    def rewind(self) -> None:
        """See `Backend.rewind`. The dropped change becomes `PATH.dropped-VERSION`, in format 1."""
        self._require_writer()
        if self._head is None or not self._may_rewind:
            raise Discontinuity(
                "There is no change that could be dropped: only the last one can be in doubt, "
                "and it was dropped already or there is none. Nothing was changed."
            )
        with self._last_write():
            self._set_aside(self._head)
            self._end = self._head.offset_bytes
            self._head, self._before, self._may_rewind = self._before, None, False
            self._set_position(self.version_count - 1)
            # The header first: cut off before it says so, the head would look lost, not dropped.
            self._write_header(self._header(), op="write header of rewind")
            fsio.sync(self._fd, op="sync header of rewind")
            fsio.truncate(self._fd, self._end, op="cut off head")
            fsio.sync(self._fd, op="sync cut")

    def _set_aside(self, entry: Entry) -> None:
        """Copies an entry into a file of format 1 of its own; durable when it returns."""
        built = f"{self._path}.dropping"
        fd = fsio.create(built, op="create set-aside file", exclusive=False)
        try:
            start = v1.HEADER_BYTES
            end = self._copy(entry.offset_bytes, entry.end_bytes, fd, start, op="set aside")
            header = v1.pack_header(v1.Header(entry.version, end, 0, start, 1))
            fsio.write_at(fd, [header.ljust(start, b"\x00")], 0, op="set aside")
            fsio.sync(fd, op="sync set-aside file")
        finally:
            os.close(fd)
        kept = fsio.keep(built, f"{self._path}.dropped-{entry.version}", op="keep set-aside file")
        fsio.remove(built, op="remove unfinished set-aside file")
        self.notices.append(f"The dropped change is kept as {kept}.")

    def stream_changes(self, start: int = 0, *, head: bool = True) -> Iterator[Change]:
        """See `Backend.stream_changes`."""
        end = self._end
        if not head and self._head is not None:
            end = self._head.offset_bytes
        for entry in entries(self._fd, end):
            if entry.stale or entry.version < start:
                continue
            if entry.kind is Kind.SNAPSHOT:
                snapshot = FileSnapshot(self._fd, self._path, entry)
                yield Change(entry.version, snapshot, None)
                continue
            payload = fsio.read_at(self._fd, entry.length_bytes, entry.payload_bytes, op=_READ)
            yield Change(entry.version, None, v1.unpack_transaction(payload))

    def stage(self, base: Change | None, *, foreign_keys: bool) -> Staged:
        """See `Backend.stage`. The replacement is `PATH.compacting`."""
        assert self._head is not None, "nothing to fold in an empty backup"
        fd = fsio.create(self._staging_path, op="create compacted backup")
        try:
            fsio.write_at(fd, [bytes(v1.HEADER_BYTES)], 0, op="write header")
            end = v1.HEADER_BYTES
            count = 0
            if base is not None:
                end = _write_snapshot(fd, base, end)
                count = 1
                if not foreign_keys:
                    payload = v1.pack_transaction([FOREIGN_KEYS_OFF])
                    head = v1.pack_entry_head(len(payload), base.version, v1.TRANSACTION)
                    end = fsio.write_at(fd, [head, payload], end, op="write rider")
                    count = 2
            fold = self._head.offset_bytes
            staged = Staged(fold, end - fold, self.version_count - 1 - count)
            return self._stage_more(fd, staged)
        except BaseException:
            self.discard()
            raise
        finally:
            os.close(fd)

    def stage_more(self, staged: Staged) -> Staged:
        """See `Backend.stage_more`. Copies only what is there whole."""
        fd = fsio.open_existing(self._staging_path, writable=True, op="open compacted backup")
        try:
            return self._stage_more(fd, staged)
        except BaseException:
            self.discard()
            raise
        finally:
            os.close(fd)

    def _stage_more(self, fd: int, staged: Staged) -> Staged:
        end = staged.copied_bytes
        size = fsio.size_bytes(self._fd)
        while end + v1.ENTRY_BYTES <= size:
            head = fsio.read_at(self._fd, v1.ENTRY_BYTES, end, op=_READ)
            behind = end + v1.ENTRY_BYTES + v1.unpack_entry_head(head).length_bytes
            if behind > size:
                break
            end = behind
        to = staged.copied_bytes + staged.shift_bytes
        self._copy(staged.copied_bytes, end, fd, to, op="copy to compacted backup")
        fsio.sync(fd, op="sync compacted backup")
        return staged._replace(copied_bytes=end)

    def replace(self, staged: Staged) -> None:
        """See `Backend.replace`."""
        self._require_writer()
        assert self._head is not None
        shift = staged.shift_bytes
        count = self.version_count - staged.folded
        fd = fsio.open_existing(self._staging_path, writable=True, op="open compacted backup")
        try:
            to = staged.copied_bytes + shift
            if fsio.size_bytes(fd) != to or staged.copied_bytes > self._end:
                raise StorageError(
                    f"{self._staging_path} is not what was staged; the backup is as before."
                )
            self._copy(staged.copied_bytes, self._end, fd, to, op="copy to compacted backup")
            header = self._header()._replace(
                offset_bytes=self._end + shift,
                prev_offset_bytes=self._head.offset_bytes + shift if self._may_rewind else 0,
                version_count=count,
            )
            fsio.write_at(fd, [v1.pack_header(header)], 0, op="write header of compacted backup")
            fsio.sync(fd, op="sync compacted backup")
            with self._last_write():
                fsio.replace(self._staging_path, self._path, op="publish compacted backup")
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd = fd
        self._end += shift
        self._head = self._head._replace(offset_bytes=self._head.offset_bytes + shift)
        self._set_position(count)

    def discard(self) -> None:
        """See `Backend.discard`."""
        fsio.remove(self._staging_path, op="remove unfinished compaction")

    def close(self) -> None:
        """See `Backend.close`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._lock is not None:
            self._lock.release()


def _write_snapshot(fd: int, change: Change, start: int) -> int:
    """Writes a snapshot's entry; returns the offset behind it. Not durable."""
    assert change.snapshot is not None
    size = change.snapshot.size_bytes
    head = v1.pack_entry_head(size, change.version, v1.SNAPSHOT)
    end = fsio.write_at(fd, [head], start, op="write snapshot")
    for chunk in change.snapshot.chunks():
        end = fsio.write_at(fd, [chunk], end, op="write snapshot")
        fsio.sync(fd, op="sync part of snapshot")
    if end != start + v1.ENTRY_BYTES + size:
        raise StorageError(
            f"The snapshot was to have {size} bytes and has {end - start - v1.ENTRY_BYTES}: the "
            "database changed while it was read. Nothing of it counts; try again."
        )
    return end
