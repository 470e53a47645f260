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
from cln_backup.backends.objects.layout import pack, pack_name
from cln_backup.model.errors import StorageError
from cln_backup.storage import interruption
from cln_backup.storage.remote_objects import PART_BYTES, may_be_in_parts

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
        StorageError: an object is missing, or a pack was not stored as it should be; nothing that
            it contains was removed.
    """
    merged = 0
    for group in groups(objects.refresh(), unmerged=unmerged, least=least):
        interruption.check()
        _merge(objects, group)
        merged += len(group)
    return merged


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
        if group and (number != group[-1] + 1 or group_bytes + size_bytes > _PACK_BYTES):
            if len(group) > 1:
                yield group
            group, group_bytes = [], 0
        group.append(number)
        group_bytes += size_bytes
    if len(group) >= max(least, 2):
        yield group


def _merge(objects: LogObjects, numbers: list[int]) -> None:
    bucket, name = objects.bucket, pack_name(numbers[0], numbers[-1])
    sizes = objects.layout.objects

    def read(number: int) -> bytes:
        found = bucket.read(segment_name(number), 0, sizes[segment_name(number)].size_bytes)
        if found is None:
            raise StorageError(
                f"{objects.where(segment_name(number))} is gone: another process merges the same "
                "objects. Nothing was removed."
            )
        return found.content

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        contents = list(pool.map(read, numbers))
    content = pack(list(zip(numbers, contents, strict=True)))
    stored = bucket.put_new(name, content)
    found = bucket.read(name, 0, len(content) + 1) if stored else None
    if found is None or found.content != content:
        raise StorageError(f"{objects.where(name)} has other content. Nothing was removed.")
    bucket.delete([segment_name(number) for number in numbers])
