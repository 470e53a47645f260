"""Large objects in a bucket: their parts, and the small object that names them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PART_BYTES: Final = 4 << 20
"""The length of each part but the last; also the most that is stored without parts."""

MANIFEST_BYTES: Final = 160
"""The length of an object that names parts; no other is taken for one."""

MAGIC: Final = b"CLNPARTS"
_PARTS: Final = "parts"


class Manifest(NamedTuple):
    """The content of an object in parts."""

    parts: str
    size_bytes: int

    def pack(self) -> bytes:
        """The content of the object."""
        packed = MAGIC + json.dumps([self.parts, self.size_bytes]).encode()
        assert len(packed) < MANIFEST_BYTES
        return packed.ljust(MANIFEST_BYTES)


def manifest_of(content: bytes) -> Manifest | None:
    """The manifest in an object; `None` if the object is not of that kind."""
    if len(content) != MANIFEST_BYTES or not content.startswith(MAGIC):
        return None
    parts, size_bytes = json.loads(content[len(MAGIC) :])
    return Manifest(str(parts), int(size_bytes))


def part_key(parts: str, index: int) -> str:
    """The key of a part."""
    return f"{directory_of(parts)}{index:08}"


def directory_of(parts: str = "") -> str:
    """The prefix of the keys of all parts of an object, or of all objects."""
    return f"{_PARTS}/{parts}/" if parts else f"{_PARTS}/"


def in_parts(content: Iterable[bytes]) -> Iterator[bytes]:
    """The same content in parts of `PART_BYTES`; at least one, the last may be shorter."""
    held: list[bytes] = []
    held_bytes = 0
    any_yet = False
    for piece in content:
        at = 0
        while at < len(piece):
            took = piece[at : at + PART_BYTES - held_bytes]
            held.append(took)
            held_bytes += len(took)
            at += len(took)
            if held_bytes == PART_BYTES:
                yield b"".join(held)
                held, held_bytes, any_yet = [], 0, True
    if held or not any_yet:
        yield b"".join(held)
