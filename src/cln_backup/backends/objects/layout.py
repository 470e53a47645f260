"""The names of a backup's objects, fences and packs, and a listing of them.

Each change is one object, `log-N`: a segment of format 2 with one record. A fence is an object of
the log, too, of a length that no other has; it is never removed. `pack-F-L` has many objects of the
log between two numbers, byte for byte.
"""

from __future__ import annotations

import bisect
import os
import re
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.backends.dir.store import segment_name
from cln_backup.backends.objects.numbers import Numbers
from cln_backup.formats import v2
from cln_backup.storage.bucket import FENCE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cln_backup.storage.bucket import Bucket, Listed

NODE: Final = "node"
MAX_NUMBER: Final = 10**10 - 1
"""The largest number that fits in a name."""

_FENCE: Final = b"CLNFENCE"
_PACK: Final = b"CLNPACK1"
_COUNT: Final = struct.Struct("!I")
_ENTRY: Final = struct.Struct("!QQ")
_NAME: Final = re.compile(
    r"(?:log-(\d{10})|base-(\d{10})-(\d{10})|snapshot-(\d{10})-(\d{10})|pack-(\d{10})-(\d{10}))"
)


def new_fence() -> bytes:
    """The content of a fence; no other one has the same."""
    return _FENCE + os.urandom(FENCE_BYTES - len(_FENCE))


def pack_name(first: int, last: int) -> str:
    """The name of merged objects of the log."""
    return f"pack-{first:010}-{last:010}"


def pack(entries: Sequence[tuple[int, bytes]]) -> bytes:
    """The content of merged objects: an index, then each of them as it was."""
    index = b"".join(_ENTRY.pack(number, len(content)) for number, content in entries)
    contents = b"".join(content for _, content in entries)
    return _PACK + _COUNT.pack(len(entries)) + index + contents


def unpack(content: bytes) -> dict[int, bytes]:
    """The objects in a pack, by number. Raises `Malformed`."""
    at = len(_PACK) + _COUNT.size
    if not content.startswith(_PACK) or len(content) < at:
        raise v2.Malformed("not a pack")
    (count,) = _COUNT.unpack_from(content, len(_PACK))
    starts = at + count * _ENTRY.size
    if starts > len(content):
        raise v2.Malformed("a pack whose index is cut off")
    found: dict[int, bytes] = {}
    for index in range(count):
        number, length = _ENTRY.unpack_from(content, at + index * _ENTRY.size)
        found[number] = content[starts : starts + length]
        starts += length
    if starts != len(content):
        raise v2.Malformed("a pack of the wrong length")
    return found


def packs_of(number: int, packs: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Those packs, of a sorted list, that have a number; the nearest first."""
    for at in range(bisect.bisect_right(packs, (number, MAX_NUMBER)) - 1, -1, -1):
        if number <= packs[at][1]:
            yield packs[at]


class Layout(NamedTuple):
    """A listing of a backup, each list sorted.

    Attributes:
        objects: all, by name; of one in parts, only the object that names them.
        bases: generation, and number of the first object of the log that it needs.
        snapshots: number of the object that refers to it, and its own.
        singles: numbers of the objects of the log that are not merged, or not removed yet.
        fences: numbers of the fences.
        packs: first and last number of each pack.
        parts: the size of the parts of each large object, published or not.
    """

    objects: dict[str, Listed]
    bases: list[tuple[int, int]]
    snapshots: list[tuple[int, int]]
    singles: list[int]
    fences: list[int]
    packs: list[tuple[int, int]]
    parts: dict[str, int]

    @property
    def last_number(self) -> int:
        """The highest number that any object of the log has had; 0 if there is none."""
        ends = [*self.singles[-1:], *self.fences[-1:], *(last for _, last in self.packs)]
        return max([*ends, *(start - 1 for _, start in self.bases[-1:])], default=0)

    def numbers(self, first: int) -> Numbers:
        """The numbers of the log's objects from one on, without fences."""
        singles = ((number, number) for number in self.singles if number >= first)
        packs = ((max(start, first), last) for start, last in self.packs if last >= first)
        return Numbers((*singles, *packs))

    def log_names(self, first: int, last: int) -> list[str]:
        """The names of the log's objects, without fences, that have only numbers of a range."""
        names = [segment_name(number) for number in self.singles if first <= number <= last]
        names += [pack_name(*one) for one in self.packs if first <= one[0] and one[1] <= last]
        return names

    def size_bytes(self, names: Iterable[str]) -> int:
        """The size of objects as listed."""
        return sum(self.objects[name].size_bytes for name in names if name in self.objects)


def read_layout(bucket: Bucket) -> Layout:
    """Lists a backup. Raises as `Bucket.list`."""
    layout = Layout({}, [], [], [], [], [], {})
    for one in bucket.list():
        directory, slash, rest = one.key.partition("/")
        if slash:
            if directory == "parts":
                parts = rest.partition("/")[0]
                layout.parts[parts] = layout.parts.get(parts, 0) + one.size_bytes
            continue
        layout.objects[one.key] = one
        found = _NAME.fullmatch(one.key)
        if found is None:
            continue
        number, generation, start, referrer, own, first, last = found.groups()
        if number is not None:
            fence = one.size_bytes == FENCE_BYTES
            (layout.fences if fence else layout.singles).append(int(number))
        elif generation is not None:
            layout.bases.append((int(generation), int(start)))
        elif referrer is not None:
            layout.snapshots.append((int(referrer), int(own)))
        else:
            layout.packs.append((int(first), int(last)))
    return layout
