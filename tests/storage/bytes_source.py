"""A source of records that is nothing but bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class BytesSource:
    """See `Source`."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def size_bytes(self) -> int:
        return len(self._content)

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        return self._content[offset_bytes : offset_bytes + length_bytes]

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass
