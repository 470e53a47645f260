"""`file:///path`: one file of format 1, the one that the community's `backup` plugin writes."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from cln_backup.backends import redacted
from cln_backup.backends.contract import Backend, Staged, check_follows, nothing_to_drop
from cln_backup.backends.file import rewrite as file_rewrite
from cln_backup.backends.file.changes import changes
from cln_backup.backends.file.end import FileEnd
from cln_backup.backends.file.scan import Entry, Layout, entries, scan
from cln_backup.backends.inventory import Inventory, noted_node, space_bytes
from cln_backup.backends.local_url import absolute_path
from cln_backup.backends.look import moved
from cln_backup.backends.places import hint_for_directory, require_backup_file
from cln_backup.backends.writer import LastWrite, WriterLock
from cln_backup.formats import v1
from cln_backup.model.change import Change, Head, Kind
from cln_backup.model.errors import (
    AlreadyExists,
    BadUrl,
    StorageError,
)
from cln_backup.model.statements import foreign_keys_after
from cln_backup.storage import directories, fsio, giving_back, interruption, scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.opening import Opening

_READ = "read backup"


def path_of(url: str) -> str:
    """The path in a `file:` URL, taken as it stands: nothing in it is unquoted.

    Raises:
        BadUrl: it names no absolute path, or one that other programs would read differently.
    """
    path, _ = absolute_path(url, "file")
    if path.endswith("/") or os.path.isdir(path):
        raise BadUrl(f"{redacted(url)!r} is a directory. {hint_for_directory(path)}")
    return path


def _vacant(path: str) -> str:
    if os.path.lexists(path):
        raise AlreadyExists(
            f"A file stands at {path} and is left as it is. If it is a backup, it can be used "
            "as it is; otherwise choose another name."
        )
    return path


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
        self._last_write = LastWrite()
        self._written: FileEnd | None = None  # for a writer
        self._stored_ms: int | None = None

    @classmethod
    def path_at(cls, url: str) -> str:
        """See `Backend.path_at`."""
        return path_of(url)

    @classmethod
    def create(cls, url: str, base: Change | None) -> None:
        """See `Backend.create`. The file is built beside, under another name."""
        file_rewrite.create(_vacant(path_of(url)), base)

    @classmethod
    @contextlib.contextmanager
    def creating(cls, url: str, base: Change | None) -> Iterator[None]:
        """See `Backend.creating`."""
        path = _vacant(path_of(url))
        file_rewrite.create(path, base)
        made = os.lstat(path)
        try:
            yield
        except BaseException:
            file_rewrite.withdraw(path, made)
            raise

    @classmethod
    @contextlib.contextmanager
    def building(cls, url: str) -> Iterator[str]:
        """See `Backend.building`."""
        path = _vacant(path_of(url))
        with scratch.directory(os.path.dirname(path), op="copy") as directory:
            built = os.path.join(directory, "copy")
            yield f"file://{built}"
            fsio.publish(built, path, op="publish copy")

    @classmethod
    def open(cls, url: str, *, writable: bool) -> FileBackend:
        """See `Backend.open`."""
        # Through a link, the lock and a compaction's rename must meet the file itself.
        path = os.path.realpath(path_of(url))
        require_backup_file(path)
        lock = WriterLock(path, f"{path}.writer") if writable else None
        fd = -1
        try:
            fd = fsio.open_existing(path, writable=writable, op="open backup")
            if lock is not None:
                lock.lock_too(fd, path)
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
                layout = self._repair(layout)
        self._end = layout.end_bytes
        self._head = layout.head
        self._before = layout.before
        self._may_rewind = layout.head_may_be_dropped
        self._set_position(layout.version_count)
        if layout.stale:
            self.notices.append(
                f"The backup holds changes that the node never committed ({layout.stale}), as the "
                "community's plugin leaves them after a crash. They do not count; they are taken "
                "out when a node or a compaction next writes to the backup."
            )
        if layout.header.version > self.version or layout.header.offset_bytes > layout.size_bytes:
            self.notices.append(
                f"The header names a change for version {layout.header.version} that is not there. "
                "It was cut off while it was written, before the node was answered, or with the "
                f"end of the file later. The backup is at version {self.version}."
            )
        if layout.torn_bytes:
            self.notices.append(
                f"The backup ends with {layout.torn_bytes} bytes of a change that was cut while it "
                "was written, or is being written now, which comes before the node is answered. A "
                "copy that was made while the node wrote can look the same, and lack newer "
                "changes. It does not "
                f"count; the backup is at version {self.version}."
            )
        if self._lock is not None:
            header = self._mend(layout)
            self._written = FileEnd(self._path, self._fd, header, self._head)

    def _mend(self, layout: Layout) -> v1.Header:
        """Mends what a cut left; returns the header that the file has now."""
        header = self._header()
        if layout.torn_bytes:
            kept = file_rewrite.keep_torn(self._fd, self._path, layout)
            self.notices.append(f"What was cut is kept as {kept}.")
        elif header[:2] == layout.header[:2]:
            return layout.header
        self._write_header(header, op="mend header")
        fsio.sync(self._fd, op="sync mended header")
        if layout.torn_bytes:
            fsio.truncate(self._fd, self._end, op="cut off torn entry")
            fsio.sync(self._fd, op="sync cut")
        return header

    def _repair(self, layout: Layout) -> Layout:
        fd, kept = file_rewrite.repair(self._fd, self._path, layout)
        assert self._lock is not None
        self._lock.lock_too(fd, self._path)
        os.close(self._fd)
        self._fd = fd
        self.notices.append(
            f"The backup held changes that the node never committed ({layout.stale}), as the "
            "community's plugin leaves them after a crash. They were taken out; the file as it was "
            f"is kept as {kept}."
        )
        return scan(fd, self._path)

    def _set_position(self, version_count: int) -> None:
        self.version = 0 if self._head is None else self._head.version
        before = self._before if self._may_rewind else None
        self.prev_version = 0 if before is None else before.version
        self.version_count = version_count

    def _header(self) -> v1.Header:
        """What the header must say now; the pair for a rewind is 0 where there is none."""
        prev_offset = 0
        if self._may_rewind and self._head is not None:
            prev_offset = self._head.offset_bytes
        return v1.Header(
            self.version, self._end, self.prev_version, prev_offset, self.version_count
        )

    def _write_header(self, header: v1.Header, *, op: str) -> None:
        packed = v1.pack_header(header)
        fsio.write_at(self._fd, [packed], 0, op=op)
        if self._written is not None:
            self._written.header = packed

    def _require_writer(self, *, look: bool = False) -> FileEnd:
        """Makes sure that nobody wrote since this writer did; that is its last write otherwise."""
        assert self._lock is not None, "opened for reading"
        assert self._written is not None
        self._last_write.require_none_failed(self._path)
        self._last_write.failed = True
        if not self._lock.is_held():
            raise moved(self._path, f"{self._path}.writer")
        self._written.require(self._end, now=look)
        self._last_write.failed = False
        return self._written

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
    def opening(self) -> Opening:
        """See `Backend.opening`."""
        from cln_backup.backends.opening import Opening

        return Opening(self.url, None, False)

    @property
    def dated_by_file(self) -> bool:
        """See `Backend.dated_by_file`: format 1 has no room for times."""
        return True

    @property
    def storage_dir(self) -> str:
        """See `Backend.storage_dir`."""
        return os.path.dirname(self._path)

    @property
    def node_id(self) -> str | None:
        """See `Backend.node_id`."""
        return noted_node(f"{self._path}.writer")

    @classmethod
    def inventory(cls, url: str) -> Inventory:
        """See `Backend.inventory`. All whose name starts with the backup's belongs to it."""
        path = os.path.realpath(path_of(url))
        require_backup_file(path)
        directory, name = os.path.split(path)
        beside = directories.names(directory, op="list backup")
        names = [name, *(found for found in beside if found.startswith(f"{name}."))]
        space = space_bytes(os.path.join(directory, found) for found in names)
        return Inventory(None, (), None, None, space)

    def claim(self, node_id: str) -> None:
        """See `Backend.claim`. It is noted in `PATH.writer`."""
        self._require_writer()
        assert self._lock is not None
        self._lock.claim(node_id, self._path)

    def _sign(self) -> None:
        assert self._lock is not None
        self._lock.sign()

    def add_change(self, change: Change) -> None:
        """See `Backend.add_change`. One write of the entry, one of the header, one sync."""
        written = self._require_writer(look=change.transaction is None)
        check_follows(change, self.version, empty=self._head is None)
        self._sign()
        start = self._end
        kind = change.kind
        foreign_keys = self._head is None or self._head.foreign_keys
        if change.transaction is None:
            assert change.snapshot is not None
            v1.pack_entry_head(change.snapshot.size_bytes, change.version, v1.SNAPSHOT)
            with self._last_write:
                end = self._write_snapshot(change, start)
            foreign_keys = True
            payload = None
        else:
            payload = v1.pack_transaction(change.transaction)
            if kind is Kind.RIDER:
                foreign_keys = foreign_keys_after(change.transaction, foreign_keys)
            head = v1.pack_entry_head(len(payload), change.version, v1.TRANSACTION)
            with self._last_write:
                end = fsio.write_at(self._fd, (head, payload), start, op="append entry")
        entry = Entry(start, end - start - v1.ENTRY_BYTES, change.version, kind, foreign_keys)
        count = self.version_count + 1
        with self._last_write:
            header = v1.Header(change.version, end, self.version, start, count)
            self._write_header(header, op="write header")
            fsio.sync(self._fd, op="sync change")
        self._before, self._head, self._end, self._may_rewind = self._head, entry, end, True
        self._stored_ms = change.stored_ms
        if payload is None:
            with interruption.held():  # the snapshot is stored by now
                written.read_payload(self._fd, entry)
        else:
            written.appended(payload)
        self._set_position(count)

    def _write_snapshot(self, change: Change, start: int) -> int:
        """Writes a snapshot's entry; returns the offset after it. One that fails is cut off."""
        try:
            with interruption.let_through():
                end = file_rewrite.write_snapshot(self._fd, change, start)
            fsio.sync(self._fd, op="sync snapshot")
        except BaseException:
            fsio.truncate(self._fd, start, op="cut off unfinished snapshot")
            raise
        return end

    def rewind(self) -> None:
        """See `Backend.rewind`. The dropped change becomes `PATH.dropped-VERSION`, in format 1."""
        written = self._require_writer(look=True)
        if self._head is None or not self._may_rewind:
            raise nothing_to_drop()
        self._sign()
        self.discard()  # a replacement holds the head as it was
        with self._last_write:
            kept = file_rewrite.set_aside(self._fd, self._path, self._head)
            self.notices.append(f"The dropped change is kept as {kept}.")
            self._end = self._head.offset_bytes
            self._head, self._before, self._may_rewind = self._before, None, False
            self._set_position(self.version_count - 1)
            # The header first: cut off before it says so, the head would look lost, not dropped.
            self._write_header(self._header(), op="write header of rewind")
            fsio.sync(self._fd, op="sync header of rewind")
            fsio.truncate(self._fd, self._end, op="cut off head")
            fsio.sync(self._fd, op="sync cut")
            written.read_payload(self._fd, self._head)

    def stream_changes(self, start: int = 0, *, head: bool = True) -> Iterator[Change]:
        """See `Backend.stream_changes`."""
        end = self._end
        if not head and self._head is not None:
            end = self._head.offset_bytes
        return changes(self._fd, self._path, start, end)

    def stage(self, base: Change | None, *, foreign_keys: bool) -> Staged:
        """See `Backend.stage`. The replacement is `PATH.compacting-PID`."""
        assert self._head is not None, "nothing to fold in an empty backup"
        return file_rewrite.stage(
            *(self._fd, self._path, self._head, self.version_count, base), foreign_keys=foreign_keys
        )

    def stage_more(self, staged: Staged) -> Staged:
        """See `Backend.stage_more`. Copies only what is there whole."""
        return file_rewrite.stage_more(self._fd, staged)

    def replace(self, staged: Staged) -> None:
        """See `Backend.replace`."""
        written = self._require_writer(look=True)
        assert self._head is not None
        shift = staged.shift_bytes
        count = self.version_count - staged.folded
        fd = fsio.open_existing(staged.name, writable=True, op="open compacted backup")
        try:
            file_rewrite.copy_to_staged(self._fd, fd, staged, self._end)
            header = self._header()._replace(
                offset_bytes=self._end + shift,
                prev_offset_bytes=self._head.offset_bytes + shift if self._may_rewind else 0,
                version_count=count,
            )
            fsio.write_at(fd, [v1.pack_header(header)], 0, op="write header of compacted backup")
            fsio.keep_times(fd, self._fd)
            fsio.sync(fd, op="sync compacted backup")
            assert self._lock is not None
            self._lock.lock_too(fd, staged.name)
            with self._last_write:
                fsio.replace(staged.name, self._path, op="publish compacted backup")
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd = fd
        self._end += shift
        written.replaced(fd, header)
        self._head = self._head._replace(offset_bytes=self._head.offset_bytes + shift)
        if self._before is not None and self._before.offset_bytes >= staged.fold_bytes:
            self._before = self._before._replace(offset_bytes=self._before.offset_bytes + shift)
        elif self._before is not None:  # it was folded: what stands before the head now?
            self._before = None
            for entry in entries(fd, self._head.offset_bytes):
                self._before = entry
        self._set_position(count)

    def discard(self) -> None:
        """See `Backend.discard`."""
        file_rewrite.discard(self._path)

    def close(self) -> None:
        """See `Backend.close`. A head that came with its time gives it to the file."""
        if self._fd >= 0:
            if self._lock is not None and self._stored_ms:
                with contextlib.suppress(StorageError):  # the file is another's
                    fsio.set_time(self._fd, self._stored_ms)
            if self._lock is None:
                giving_back.close_reader(self._fd)
            else:
                os.close(self._fd)
            self._fd = -1
        if self._lock is not None:
            self._lock.release()
