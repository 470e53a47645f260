"""Finds the place of a kept replica in a history again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup.backends.follows import position_is_gone
from cln_backup.model.errors import Discontinuity
from cln_backup.model.position import Position
from cln_backup.replay.reached import mark_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.contract import Reader
    from cln_backup.model.change import Change
    from cln_backup.replay.reached import Reached


def changes_after(reader: Reader, reached: Reached) -> Iterator[Change]:
    """The changes after what a replica has; its last change is compared with the history's.

    Another history may have a change with that number too, so without a digest of the history the
    position alone proves nothing.

    Raises:
        Discontinuity: it is not in this history.
    """
    position = reached.position
    assert position is not None
    for step in (1, 0):  # the change may be a transaction or a rider
        before = Position(position.version - step, position.changes - 1, None)
        changes = reader.stream_changes(after=before)
        try:
            last = next(changes, None)
        except Discontinuity:
            continue
        if last is None or last.version != position.version:
            continue
        if mark_of(last) == reached.mark:
            return changes
    raise position_is_gone(position)


def snapshots_after(
    reader: Reader, position: Position | None, failed: int
) -> Iterator[tuple[int, Change]]:
    """The snapshots after a position (`None`: all), with their numbers, if above `failed`.

    Raises as `Reader.stream_changes`.
    """
    standing = reader.standing
    before = standing.position.changes - standing.version_count
    first = 1 + (before if position is None else position.changes)
    for number, change in enumerate(reader.stream_changes(after=position), first):
        if change.snapshot is None:
            continue
        if number > failed:
            yield number, change
        else:
            for _ in change.snapshot.chunks():  # it must be read before the next change
                pass
