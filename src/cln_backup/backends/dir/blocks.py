"""A file of zeros that is filled from its start, in whole blocks, past the system's cache.

The node waits for one write and one sync. Without the system's cache, the data are neither copied
to it nor searched there; measured, that makes both a tenth faster.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

from cln_backup.backends.look import BLOCK_BYTES, read_anew
from cln_backup.storage import fsio
from cln_backup.storage.path_watch import PathWatch

_MEMORY_BYTES: Final = 1 << 16


def _memory(length_bytes: int) -> memoryview:
    """Aligned memory, which is private to this process even after a fork."""
    return memoryview(mmap.mmap(-1, length_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class BlockFile:
    """The writer of a file of zeros.

    Attributes:
        end_bytes: offset of the next write.
        is_in_place: tells whether its path still leads to it.
    """

    def __init__(self, path: str, *, op: str) -> None:
        """Opens the file; nothing is written."""
        self.fd = fsio.open_direct(path, op=op)
        self.end_bytes = 0
        self._path = path
        self.is_in_place = PathWatch(path, self.fd).leads_to_file
        self._memory = _memory(_MEMORY_BYTES)

    def look(self) -> str | None:
        """Reads the place of the next write; returns a description of unexpected bytes, or `None`.

        The last written block must be there, followed by zeros only.
        """
        start = (self.end_bytes - 1) // BLOCK_BYTES * BLOCK_BYTES
        held = self.end_bytes - start
        [found] = read_anew(self._path, [(start, 2 * BLOCK_BYTES)])
        if found[:held] != self._memory[:held]:
            return f"the bytes before byte {self.end_bytes} differ from the last write"
        if found.count(0, held) != len(found) - held:
            return f"more was written from byte {self.end_bytes} on"
        return None

    def append(self, data: bytes, *, op: str) -> None:
        """Writes bytes after the previous ones; durable after `fsio.sync`."""
        held = self.end_bytes % BLOCK_BYTES
        size = held + len(data)
        whole = -(-size // BLOCK_BYTES) * BLOCK_BYTES
        memory = self._memory
        if whole > len(memory):
            memory = _memory(whole)
            memory[:held] = self._memory[:held]
        memory[held:size] = data
        memory[size:whole] = bytes(whole - size)
        fsio.write_at(self.fd, [memory[:whole]], self.end_bytes - held, op=op)
        self.end_bytes += len(data)
        held = self.end_bytes % BLOCK_BYTES or BLOCK_BYTES  # a full block too, for `look`
        self._memory[:held] = memory[size - held : size]

    def close(self) -> None:
        """Closes the file."""
        os.close(self.fd)
