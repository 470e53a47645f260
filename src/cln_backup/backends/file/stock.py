"""The state of a `file:` backup that reader and writer know after opening it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cln_backup.backends.contract import LastChange
from cln_backup.backends.events import Event, Noticed
from cln_backup.backends.ticket import Generation
from cln_backup.formats import v1
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.file.entries import Entry
    from cln_backup.backends.file.scan import Layout


def last_change_of(fd: int, head: Entry | None) -> LastChange:
    """The file's modification time: format 1 has no times."""
    return LastChange(None if head is None else os.fstat(fd).st_mtime, by_file=True)


def generation_of(fd: int, version_count: int) -> Generation:
    """The first entry if it is a snapshot, and the rest of the file. Raises `StorageError`."""
    size = fsio.size_bytes(fd) - v1.HEADER_BYTES
    first = fsio.read_at(fd, v1.ENTRY_BYTES, v1.HEADER_BYTES, op="read backup")
    if len(first) == v1.ENTRY_BYTES:
        head = v1.unpack_entry_head(first)
        if head.type == v1.SNAPSHOT:
            base = v1.ENTRY_BYTES + head.length_bytes
            return Generation(base, size - base, version_count - 1)
    return Generation(0, size, version_count)


def tell_of(layout: Layout, on_event: OnEvent) -> None:
    """Reports faults found while opening."""
    version = 0 if layout.head is None else layout.head.version
    texts = []
    if layout.stale:
        texts.append(
            f"The backup holds changes that the node never committed ({layout.stale}), as the "
            "community's plugin leaves them after a crash. They are ignored, and removed when a "
            "node or a compaction next writes to the backup."
        )
    if layout.header.version > version or layout.header.offset_bytes > layout.size_bytes:
        texts.append(
            f"The header names a change for version {layout.header.version} that is missing. Its "
            "write was interrupted before the node was answered, or the end of the file was lost "
            f"later. The backup is at version {version}."
        )
    if layout.torn_bytes:
        texts.append(
            f"The backup ends with {layout.torn_bytes} bytes of a change that was cut off while "
            "it was written, or is being written now, before the node is answered. They are "
            "ignored. A copy that was made while the node wrote can look the same, and lack newer "
            f"changes. The backup is at version {version}."
        )
    for text in texts:
        on_event(Event(Noticed.FOUND, text))
