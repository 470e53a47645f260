"""Sources: bytes with a size, wherever they are stored, from which records are read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Protocol

from cln_backup.storage import fsio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

_READ: Final = "read backup"


class Source(Protocol):
    """Bytes that can be read from any offset, repeatedly, until it is closed."""

    def size_bytes(self) -> int:
        """How many bytes there are now. Raises `StorageError`."""

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Reads up to that many bytes; fewer only at the end. Raises `StorageError`."""

    def close(self) -> None:
        """Releases its resources; idempotent."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_error: object) -> None: ...


class FileSource:
    """The bytes of an open file, whose descriptor it closes; the file position does not move."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def size_bytes(self) -> int:
        """See `Source.size_bytes`."""
        return fsio.size_bytes(self._fd)

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        """See `Source.read_at`."""
        return fsio.read_at(self._fd, length_bytes, offset_bytes, op=_READ)

    def forget_cached(self) -> None:
        """Asks the system to read the file from its disk the next time, if it supports that."""
        fsio.forget_cached(self._fd)

    def close(self) -> None:
        """See `Source.close`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def chunks(source: Source, end_bytes: int, offset_bytes: int = 0) -> Iterator[bytes]:
    """Reads from one offset to another, in pieces of at most `fsio.CHUNK_BYTES`.

    Stops early at the end of the source.
    """
    while offset_bytes < end_bytes:
        wanted = min(fsio.CHUNK_BYTES, end_bytes - offset_bytes)
        chunk = source.read_at(offset_bytes, wanted)
        if not chunk:
            return
        yield chunk
        offset_bytes += len(chunk)


class BytesSource:
    """Bytes that were read as a whole, as a `Source`."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def size_bytes(self) -> int:
        """See `Source.size_bytes`."""
        return len(self._content)

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        """See `Source.read_at`."""
        return self._content[offset_bytes : offset_bytes + length_bytes]

    def close(self) -> None:
        """See `Source.close`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass
