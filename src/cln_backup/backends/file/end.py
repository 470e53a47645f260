"""The end of a `file:` backup as its writer left it, and the check that it is still so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup.backends.look import BLOCK_BYTES, LookSchedule, conflict, moved, read_anew
from cln_backup.formats import v1
from cln_backup.storage import fsio
from cln_backup.storage.path_watch import PathWatch

if TYPE_CHECKING:
    from cln_backup.backends.file.entries import Entry


class FileEnd:
    """The header and the end of the last entry, as the writer last left them.

    Attributes:
        header: as it is in the file, without the padding.
        payload: the end of the last entry, at most a block; empty in an empty backup.
        schedule: when to look.
    """

    def __init__(self, path: str, fd: int, header: v1.Header, head: Entry | None) -> None:
        """Reads the end of the last entry."""
        self._path = path
        self._watch = PathWatch(path, fd, size=True)
        self.schedule = LookSchedule()
        self.header = v1.pack_header(header)
        self.payload = b""
        self.read_payload(fd, head)

    def read_payload(self, fd: int, head: Entry | None) -> None:
        """Reads the last entry from the file."""
        length = 0 if head is None else min(BLOCK_BYTES, head.length_bytes)
        end = 0 if head is None else head.end_bytes
        self.payload = fsio.read_at(fd, length, end - length, op="read backup")

    def replaced(self, fd: int, header: v1.Header) -> None:
        """Records that another file, with the same last entry, has replaced this one."""
        self._watch = PathWatch(self._path, fd, size=True)
        self.header = v1.pack_header(header)

    def appended(self, payload: bytes) -> None:
        """Records an entry that was appended and synced."""
        self.payload = payload[-BLOCK_BYTES:]  # no more: a migration's payload may be large
        self.schedule.appended()

    def require(self, end_bytes: int, *, now: bool) -> None:
        """Makes sure that the backup still ends there; with a look if one is due, or `now`.

        Raises:
            WriterConflict: another process wrote to it.
            StorageError: the path leads to another file.
        """
        size = self._watch.size_bytes()
        if size != end_bytes:
            if size is None:
                raise moved(self._path, f"{self._path}.writer")
            raise conflict(self._path, _longer_or_shorter(size, end_bytes))
        if self.schedule.is_due() or now:
            self.look(end_bytes)

    def look(self, end_bytes: int) -> None:
        """Checks now that the header and the last change are there. Raises as `require`."""
        last = self.payload
        start = (end_bytes - len(last)) // BLOCK_BYTES * BLOCK_BYTES
        length = end_bytes - start
        # Includes one byte that must not exist.
        whole = (length // BLOCK_BYTES + 1) * BLOCK_BYTES
        header, found = read_anew(self._path, [(0, BLOCK_BYTES), (start, whole)])
        if len(found) != length:
            raise conflict(self._path, _longer_or_shorter(start + len(found), end_bytes))
        if not header.startswith(self.header):
            raise conflict(self._path, "its header differs")
        if not found.endswith(last):
            raise conflict(self._path, "its last change differs")


def _longer_or_shorter(size_bytes: int, end_bytes: int) -> str:
    what = "more" if size_bytes > end_bytes else "less"
    return f"it has {what} than the {end_bytes} bytes that were written"
