"""Stores each call of `db_write` in the backup, or says why the node must stop."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from cln_backup.model.change import Change, Kind
from cln_backup.model.continuity import database_version
from cln_backup.model.errors import Discontinuity
from cln_backup.node.settings import Alarm, State, read_state, write_state
from cln_backup.plugin.migration import MigrationWatch
from cln_backup.plugin.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cln_backup.backends.contract import Writer
    from cln_backup.backends.events import OnEvent

_REMEMBERED_ANSWERS = 10_000


class Proof(NamedTuple):
    """The follower's proof of the backup.

    Attributes:
        version: the data version up to which it has replayed the backup; 0 if none.
        at: when that was found, in seconds since 1970.
        lag_s: the age of the oldest change that it has not replayed; 0 if there is none.
    """

    version: int
    at: float | None
    lag_s: float


class Replicator:
    """The backup of the node whose network directory is the current directory.

    Nothing is opened before the first call (`start`).

    Attributes:
        backend: the backup, from the first call on.
        patience: how long to wait for a server.
    """

    def __init__(
        self,
        directory: str,
        log: Callable[[str], None],
        patience: Patience | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        """`log` gets messages about the start, `on_event` the events of the backup."""
        self.patience = patience or Patience()
        self._directory = os.path.abspath(directory)
        self._log = log
        self._on_event = on_event or (lambda event: log(event.text))
        self.backend: Writer | None = None
        self._migration: MigrationWatch | None = None
        self._asked_at: float | None = None
        self._last_answer_at: float | None = None
        self._proven: tuple[int, float | None] = (0, None)
        self._unproven_since: float | None = None
        self._notes: dict[str, Any] = {}
        self._answer_times_s: deque[float] = deque(maxlen=_REMEMBERED_ANSWERS)

    def db_write(self, version: int, transaction: Sequence[str]) -> None:
        """Stores one call; it is on stable storage, and the node may commit, when this returns.

        Raises:
            BackupError: the node must not commit; the message says why and what to do.
        """
        self._asked_at = time.perf_counter()
        change = Change(version, None, transaction)
        if self.backend is None:
            from cln_backup.plugin.start import start

            self.backend = start(self._directory, change, self._log, self._on_event, self.patience)
            self._migration = MigrationWatch(self._directory, self.backend, self._log)
        if self._migration is not None:  # only while the node starts
            self._migration.before(transaction)
        try:
            self.backend.store_change(change, self.patience.bound_s())
        except Discontinuity as error:
            raise self._judged(error, change, self.backend.version) from None

    def node_is_up(self) -> None:
        """Call it before `init` is answered: from then on, the node's peers may see its state.

        Raises:
            StorageError, BadSettings: the node must not continue.
        """
        if self._migration is not None:
            self._migration.node_is_up()
            self._migration = None

    def settle(self) -> None:
        """Completes the bookkeeping of the last call; called after the answer.

        Raises:
            StorageError: the change is stored; no further one will be.
        """
        if self._asked_at is None or self.backend is None:
            return
        self._answer_times_s.append(time.perf_counter() - self._asked_at)
        self._asked_at = None
        self._last_answer_at = time.time()
        if self._unproven_since is None:
            self._unproven_since = self._last_answer_at
        self.backend.settle()

    def _judged(self, error: Discontinuity, change: Change, backup_version: int) -> Discontinuity:
        """The error to report for a refused change; `error` itself if the storage had a reason."""
        if database_version(change.version, rider=change.kind is Kind.RIDER) == backup_version:
            return error
        return Discontinuity(
            f"The node sent a change for data version {change.version}, but the backup is at "
            f"{backup_version}. Nothing was stored. Another program may write to the node's "
            "database or to its backup; find it before you start the node again."
        )

    def answer_times_us(self) -> tuple[int, int] | None:
        """Median and 99th percentile of the last answers; `None` before the first."""
        if not self._answer_times_s:
            return None
        times = sorted(self._answer_times_s)
        last = len(times) - 1
        return (
            round(times[last // 2] * 1e6),
            round(times[last * 99 // 100] * 1e6),
        )

    def last_change_age_s(self) -> float | None:
        """The age of the last change; `None` if unknown."""
        at = self._last_answer_at
        if at is None and self.backend is not None:
            at = self.backend.last_change.at
        return None if at is None else max(0.0, time.time() - at)

    def proven(self, version: int, at: float | None, looked_at: float | None) -> None:
        """Records a proof of the follower, which has everything stored before `looked_at`."""
        self._proven = version, at
        if self.backend is not None and version == self.backend.version:
            self._unproven_since = None
        elif looked_at is not None:
            self._unproven_since = max(self._unproven_since or looked_at, looked_at)

    def proof(self) -> Proof:
        """The follower's last proof, and its lag."""
        lag_s = 0.0
        if self.backend is not None and self._proven[0] != self.backend.version:
            lag_s = max(0.0, time.time() - (self._unproven_since or self._proven[1] or 0.0))
        return Proof(*self._proven, lag_s)

    def note(self, **fields: float | str | Alarm | None) -> None:
        """Records fields of `State`; `write_notes` makes them durable."""
        self._notes |= fields

    def has_notes(self) -> bool:
        """Whether there are records to write."""
        return bool(self._notes)

    def write_notes(self) -> None:
        """Writes the pending records to `backup.state`, while the node does not wait.

        Raises:
            StorageError, BadSettings: the records are lost; the backup is not affected.
        """
        if self._notes:
            notes, self._notes = self._notes, {}
            write_state(self._directory, read_state(self._directory)._replace(**notes))

    def state(self) -> State:
        """The node's state, with the pending records. Raises `BadSettings`."""
        return read_state(self._directory)._replace(**self._notes)

    def close(self) -> None:
        """Closes the backup."""
        if self.backend is not None:
            self.backend.close()
