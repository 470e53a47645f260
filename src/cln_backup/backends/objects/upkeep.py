"""Maintenance beside a writer: `python -m cln_backup.backends.objects.upkeep`.

A child process at the lowest priority: merges objects of the log, and removes what no reader needs
any more; never a fence. It needs no key. Idempotent: the next run finishes interrupted work.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from cln_backup.backends.objects.log_objects import LogObjects
from cln_backup.backends.objects.merging import merge
from cln_backup.backends.objects.stock import expired
from cln_backup.process.channel import Message
from cln_backup.storage.remote_objects import may_be_in_parts

if TYPE_CHECKING:
    from cln_backup.backends.objects.place import ObjectsPlace
    from cln_backup.process.parent import Parent

GRACE_S: Final = 3600.0
"""A generation stays for so long after it was replaced, for those who read it."""

_ABANDONED_S: Final = 86_400.0
"""A large object that was prepared so long ago will not be published."""

_LIMIT_S: Final = 60.0


class Done(Message):
    """The work is done."""


class Start(Message):
    """The request: the URL of the backup, and the class of its place."""

    url: str
    module: str
    place: str


def remove_expired(
    objects: LogObjects, keep: int, keep_days: int, grace_s: float = GRACE_S
) -> None:
    """Removes the generations that are not kept, and large objects that will never be published.

    Their times, and the present one, are by the store's clock.
    """
    layout = objects.refresh()
    now = max((one.stored_at for one in layout.objects.values()), default=0.0)
    gone = expired(layout, keep, keep_days, now, grace_s)
    small = [name for name in gone if not may_be_in_parts(layout.objects[name].size_bytes)]
    for name in set(gone).difference(small):
        objects.delete(name, op="remove expired object")
    objects.bucket.delete(small)
    objects.remove_abandoned(now - _ABANDONED_S)


def _run(start: Start, parent: Parent[Message]) -> None:
    kind: type[ObjectsPlace] = getattr(import_module(start.module), start.place)
    place = kind(start.url)
    objects = LogObjects(place.bucket(_LIMIT_S))
    merge(objects)
    remove_expired(objects, *place.keeps)
    parent.say(Done())


if __name__ == "__main__":
    from cln_backup.process.parent import serve

    serve(_run, Start)
