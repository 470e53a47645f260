"""The size and the generations of a backup in a bucket, and the objects that have expired."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cln_backup.backends.dir.store import base_name, snapshot_name
from cln_backup.backends.ticket import Generation

if TYPE_CHECKING:
    from cln_backup.backends.dir.history import Base
    from cln_backup.backends.objects.layout import Layout
    from cln_backup.backends.objects.log_objects import LogObjects

_DAY_S: Final = 86_400


def expired(
    layout: Layout, keep: int, keep_days: int, now: float, grace_s: float = 0.0
) -> list[str]:
    """The names that no kept generation needs, in the order of removal; fences are kept.

    A generation is kept as in a `dir:` backup, and also if it was replaced less than `grace_s` ago.
    `now` is by the store's clock.
    """
    bases = layout.bases
    first_kept = max(0, len(bases) - 1 - keep)
    stays_s = max(grace_s, keep_days * _DAY_S)
    for index in range(first_kept):
        successor = layout.objects[base_name(*bases[index + 1])]
        if now - successor.stored_at < stays_s:
            first_kept = index
            break
    if not bases:
        return []
    needed_from = bases[first_kept][1]
    names = [base_name(*base) for base in bases[:first_kept]]
    names += layout.log_names(0, needed_from - 1)
    names += [snapshot_name(*found) for found in layout.snapshots if found[0] < needed_from]
    return names


def size_bytes(objects: LogObjects, keep: int, keep_days: int) -> int:
    """The size of all objects of the history, without expired ones."""
    layout = objects.refresh()
    now = max((one.stored_at for one in layout.objects.values()), default=0.0)
    gone = set(expired(layout, keep, keep_days, now))
    total = layout.size_bytes(
        name for name in layout.log_names(0, layout.last_number) if name not in gone
    )
    for name in (*map(_base, layout.bases), *(snapshot_name(*found) for found in layout.snapshots)):
        if name not in gone:
            total += content_bytes(objects, name)
    return total


def _base(found: tuple[int, int]) -> str:
    return base_name(*found)


def content_bytes(objects: LogObjects, name: str) -> int:
    """The size of an object's content; 0 if it has just expired."""
    status = objects.status(name)
    return 0 if status is None else status.size_bytes


def generation_of(objects: LogObjects, base: Base, version_count: int) -> Generation:
    """The base, and the log from where it continues. Raises `StorageError`."""
    layout, state = objects.refresh(), base.state
    found = objects.status(base.name)
    first = state.start.segment
    log_bytes = layout.size_bytes(layout.log_names(first, layout.last_number))
    log_bytes += sum(
        content_bytes(objects, snapshot_name(*one)) for one in layout.snapshots if one[0] >= first
    )
    return Generation(
        found.size_bytes if state.snapshot and found is not None else 0,
        log_bytes,
        version_count - state.changes,
        None if found is None else found.stored_at,
    )
