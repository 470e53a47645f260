"""Merges small objects of the log into packs, so that fewer are listed and read.

A pack contains them byte for byte, so no key is needed. They are removed after the pack was read
back. It has every number of its range and no fence, so that its name tells what it has: the fence
of a writer that was suspended may get the name of an object that was removed, and changes nothing.
Two processes that merge the same objects make packs that overlap, which a reader allows.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from cln_backup.backends.dir.store import segment_name
from cln_backup.backends.objects.layout import pack, pack_name, packs_of, unpack
from cln_backup.formats.v2 import Malformed
from cln_backup.model.errors import Damaged, StorageError
from cln_backup.storage import interruption
from cln_backup.storage.parts import PART_BYTES
from cln_backup.storage.remote_objects import may_be_in_parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.objects.layout import Layout
    from cln_backup.backends.objects.log_objects import LogObjects

UNMERGED: Final = 64
"""The newest objects of the log, which stay as they are."""

LEAST: Final = 256
"""A pack has at least so many objects, or is nearly full, or is followed by a fence."""

_LARGE_BYTES: Final = PART_BYTES // 8
_PACK_BYTES: Final = PART_BYTES - PART_BYTES // 8
_AT_ONCE: Final = 16


def merge(objects: LogObjects, *, unmerged: int = UNMERGED, least: int = LEAST) -> int:
    """Merges what can be merged; returns the number of objects that are in packs now.

    Durable at each step; interrupted at any, the backup is whole.

    Raises:
        Damaged: a pack has other bytes than an object that it replaces; both stay.
        StorageError: an object is missing, or a pack was not stored as it should be; nothing that
            it contains was removed.
        AccessDenied: there is no right to remove; each object is in one pack at the most.
    """
    layout, merged = objects.refresh(), 0
    _finish(objects, layout)
    for group in groups(layout, unmerged=unmerged, least=least):
        interruption.check()
        _merge(objects, group)
        merged += len(group)
    return merged


def _finish(objects: LogObjects, layout: Layout) -> None:
    """Removes what is in a pack already, as an interrupted merge leaves it."""
    left: dict[tuple[int, int], list[int]] = {}
    for number in layout.singles:
        found = next(packs_of(number, layout.packs), None)
        if found is not None:
            left.setdefault(found, []).append(number)
    for found, numbers in left.items():
        content = objects.bucket.read(pack_name(*found), 0, PART_BYTES)
        if content is None:  # it has expired at this moment
            continue
        try:
            entries = unpack(content.content)
        except Malformed as error:
            raise _differs(objects, found, f"it is {error}") from None
        singles = _contents(objects, numbers)
        for number, single in zip(numbers, singles, strict=True):
            if single not in (None, entries.get(number)):
                raise _differs(objects, found, f"{segment_name(number)} has other bytes")
        objects.bucket.delete([segment_name(number) for number in numbers])


def _differs(objects: LogObjects, found: tuple[int, int], how: str) -> Damaged:
    return Damaged(
        f"{objects.where(pack_name(*found))} is damaged: {how}. The objects that it replaces are "
        "still there; nothing was removed."
    )


def groups(layout: Layout, *, unmerged: int, least: int) -> Iterator[list[int]]:
    """The numbers, without a gap, of the objects that each new pack has.

    Large ones are left as they are.
    """
    before = layout.last_number - unmerged
    group: list[int] = []
    group_bytes = 0
    for number in layout.singles:
        size_bytes = layout.objects[segment_name(number)].size_bytes
        if number > before:
            break
        if size_bytes > _LARGE_BYTES or may_be_in_parts(size_bytes):
            continue
        if any(packs_of(number, layout.packs)):
            continue
        if group and (number != group[-1] + 1 or group_bytes + size_bytes > _PACK_BYTES):
            if len(group) > 1:
                yield group
            group, group_bytes = [], 0
        group.append(number)
        group_bytes += size_bytes
    if len(group) >= max(least, 2):
        yield group


def _contents(objects: LogObjects, numbers: list[int]) -> list[bytes | None]:
    """The objects of the log, as they are in the store; `None` for one that is gone."""
    bucket, sizes = objects.bucket, objects.layout.objects

    def read(number: int) -> bytes | None:
        name = segment_name(number)
        found = bucket.read(name, 0, sizes[name].size_bytes)
        return None if found is None else found.content

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(read, numbers))


def _merge(objects: LogObjects, numbers: list[int]) -> None:
    bucket, name = objects.bucket, pack_name(numbers[0], numbers[-1])
    entries: list[tuple[int, bytes]] = []
    for number, single in zip(numbers, _contents(objects, numbers), strict=True):
        if single is None:
            raise StorageError(
                f"{objects.where(segment_name(number))} is gone: another process merges the same "
                "objects. Nothing was removed."
            )
        entries.append((number, single))
    content = pack(entries)
    stored = bucket.put_new(name, content)
    found = bucket.read(name, 0, len(content) + 1) if stored else None
    if found is None or found.content != content:
        raise StorageError(f"{objects.where(name)} has other content. Nothing was removed.")
    bucket.delete([segment_name(number) for number in numbers])
