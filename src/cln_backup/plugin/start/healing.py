"""Heals a backup at a start: appends a snapshot of the node's database, while the node waits.

The node waits in `db_write`, so its files do not change, and another process that reads through
SQLite sees exactly the version before the transaction. A child process makes the copy and the
proof, so that it can be killed when the time is over; this process appends.
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Final

from cln_backup.model.change import Change
from cln_backup.model.errors import StorageError
from cln_backup.plugin.start.messages import Prepare, Prepared
from cln_backup.process.child import Child
from cln_backup.replay.replica import DatabaseFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.plugin.start.actions import Start

HEAL_S: Final = 60.0
"""The limit for everything together."""

_LIGHTNINGD: Final = 0
"""The descriptor of the pipe from it."""

_END_S: Final = 2.0
"""The time for the child to remove its files; then it is killed, and a later run does it."""


def append_snapshot(start: Start, *, head_in_doubt: bool) -> int:
    """Appends a snapshot of the node's database, at its exact version; returns its size in bytes.

    It is on stable storage when this returns, and nothing else was changed. After an alarm about
    damaged bytes, the history starts over with it, and the earlier one is kept. `head_in_doubt` is
    as for `proven_copy`.

    Raises:
        Discontinuity: the database does not descend from what the backup holds.
        BackupError: no snapshot could be made, or not in time.
    """
    bound_s = start.patience.bound_s()
    until = time.monotonic() + (HEAL_S if bound_s is None else min(HEAL_S, bound_s))
    node, facts = start.node, start.facts
    asked = Prepare(
        start.backend.place.url,
        node.database,
        node.state.replica_dir,
        node.node_id,
        facts.database_version,
        head_in_doubt,
        facts.alarm,
        until - time.monotonic(),
    )
    module = "cln_backup.plugin.start.preparing"
    child = Child[Prepared](module, asked, (Prepared,), work="prepares a snapshot")
    try:
        copy = BoundedFile(_received(child, until).path, until)
        change = Change(facts.database_version, copy, None)
        if facts.alarm and node.state.alarm is not None and node.state.alarm.starts_over:
            kept = start.backend.start_over(change, until - time.monotonic())
            start.log(f"Damaged history set aside: it is kept as {kept}")
        else:
            start.backend.add_change(change, until - time.monotonic())
    finally:
        child.close()  # it removes the copy and anything unfinished
        child.wait(_END_S)
    return copy.size_bytes


def _received(child: Child[Prepared], until: float) -> Prepared:
    """Waits until the copy is ready. Raises `StorageError` if the time or the node is over."""
    poll = select.poll()
    poll.register(child, select.POLLIN)
    poll.register(_LIGHTNINGD, 0)  # its end only
    while True:
        left_s = until - time.monotonic()
        ready = {fd for fd, _ in poll.poll(max(0.0, left_s * 1000))}
        if not ready:
            raise _took_too_long()
        if _LIGHTNINGD in ready:
            raise StorageError("The node has ended. The backup is unchanged.")
        said = child.step()
        if said is not None:
            return said


def _took_too_long() -> StorageError:
    return StorageError("The node cannot wait longer, and the backup is unchanged.")


class BoundedFile(DatabaseFile):
    """A database file that cannot be read after a certain time.

    Attributes:
        until: in monotonic time.
    """

    def __init__(self, path: str, until: float) -> None:
        super().__init__(path)
        self.until = until

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes in order, in pieces. Raises `StorageError`, also when time is over."""
        for chunk in super().chunks():
            if time.monotonic() > self.until:
                raise _took_too_long()
            yield chunk
