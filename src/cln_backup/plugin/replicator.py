"""Brings each call of `db_write` into the backup, or says why the node must stop."""

from __future__ import annotations

import os
import time
from collections import deque
from shlex import quote
from typing import TYPE_CHECKING

from cln_backup.backends import open_backend, redacted
from cln_backup.model.change import FOREIGN_KEYS_ON, Change, Kind
from cln_backup.model.continuity import (
    STARTED_WELL,
    Decision,
    Storage,
    database_version,
    decide,
    possible_loss,
)
from cln_backup.model.errors import Discontinuity, WriterConflict
from cln_backup.node.outside import boot_id, database_in_use, database_path, lightningd_above
from cln_backup.node.settings import read_settings, read_state, write_state
from cln_backup.plugin.patience import Patience
from cln_backup.storage.mount_identity import mount_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cln_backup.backends.contract import Backend
    from cln_backup.model.continuity import Loss

_REMEMBERED_ANSWERS = 10_000
_WAIT_FOR_WRITER_S = 10


class Replicator:
    """The backup of the node in whose network directory this process runs.

    Nothing is opened before the first call: lightningd also starts its plugins to ask for their
    options, next to a node that runs.

    Attributes:
        backend: the backup, from the first call on.
        patience: how long a server may be waited for.
    """

    def __init__(
        self, directory: str, log: Callable[[str], None], patience: Patience | None = None
    ) -> None:
        self.patience = patience or Patience()
        self._directory = os.path.abspath(directory)
        self._log = log
        self.backend: Backend | None = None
        self._database = ""
        self._wrong_lock = ""
        self._last_answer_at: float | None = None
        self._compacted_at: float | None = None
        self._answer_times_s: deque[float] = deque(maxlen=_REMEMBERED_ANSWERS)

    def db_write(self, version: int, transaction: Sequence[str]) -> None:
        """Stores one call; it is on stable storage, and the node may commit, when this returns.

        Raises:
            BackupError: the node must not commit; the message says why and what to do.
        """
        started = time.perf_counter()
        change = Change(version, None, transaction)
        if self.backend is None:
            self.backend = self._open(change)
        else:
            rider = change.kind is Kind.RIDER
            decision = decide(
                version, rider=rider, head=self.backend.head, first=False, may_have_lost=False
            )
            if decision is not Decision.APPEND:
                raise Discontinuity(
                    f"The node sent a change for data version {version}, and the backup stands at "
                    f"{self.backend.version}. Another program may write to the node's database or "
                    "to its backup. Nothing was stored; find it before you start the node again."
                )
        if self.backend.remote:
            self.backend.patience_s = self.patience.bound_s()
        self.backend.add_change(change)
        self._last_answer_at = time.time()
        self._answer_times_s.append(time.perf_counter() - started)

    def _open(self, change: Change) -> Backend:
        settings = read_settings(self._directory)
        self._find_database(settings.wallet)
        state = read_state(self._directory)
        storage = self._storage()
        loss = possible_loss(Storage(state.boot_id, state.mount), storage)
        backend = self._become_writer(settings.backend_url)
        try:
            node_id = _node_id_of(self._database)
            if node_id is not None:
                backend.patience_s = self.patience.bound_s()
                backend.claim(node_id)
            self._log_notices(backend)
            self._log(
                f"Comparing backup version {backend.version} versus first write version "
                f"{change.version}"
            )
            rider = change.kind is Kind.RIDER
            decision = decide(
                change.version,
                rider=rider,
                head=backend.head,
                first=True,
                may_have_lost=loss is not None,
            )
            stands_at = database_version(change.version, rider=rider)
            if decision is Decision.APPEND:
                self._log(STARTED_WELL)
            elif decision is Decision.DROP_HEAD:
                self._log(
                    f"Last changes not applied: the node stopped before it committed version "
                    f"{backend.version}, which is dropped from the backup"
                )
            else:
                raise Discontinuity(self._explain(decision, stands_at, backend, loss))
            if storage != (state.boot_id, state.mount):
                # Before the first answer on this storage: nothing is in doubt at this moment.
                write_state(self._directory, state._replace(**storage._asdict()))
            if decision is Decision.DROP_HEAD:
                backend.patience_s = self.patience.bound_s()
                backend.rewind()
                self._log_notices(backend)
            if backend.head is not None and not backend.head.foreign_keys:
                # The process that switched them off is gone; this one has them on.
                backend.patience_s = self.patience.bound_s()
                backend.add_change(Change(stands_at, None, [FOREIGN_KEYS_ON]))
        except BaseException:
            backend.close()
            raise
        return backend

    def _find_database(self, wallet: str | None) -> None:
        """Where the node's database is, as its open files tell, whatever backup.lock says."""
        named = database_path(self._directory, wallet)
        self._database = database_in_use(lightningd_above(), named)
        if self._database != named:
            self._wrong_lock = (
                f"The node's database is {self._database}, and {self._directory}/backup.lock says "
                f"that it is {named}. Correct it before you use backup-cli, which would take the "
                f'wrong one: "wallet": "{self._database}"'
            )
            self._log(self._wrong_lock)

    def _become_writer(self, url: str) -> Backend:
        """Opens the backup; waits a little for a writer that is just ending."""
        deadline_s = time.monotonic() + _WAIT_FOR_WRITER_S
        waiting = False
        while True:
            try:
                return open_backend(url, writable=True)
            except WriterConflict as error:
                if error.holder is not None and _is_of_this_node(error.holder):
                    raise WriterConflict(
                        f"cln-backup is loaded twice in this node: process {error.holder}, of the "
                        "same lightningd, writes to the backup already; this process wrote "
                        "nothing. Leave one plugin= or important-plugin= line for it in the "
                        "configuration, and none in a plugin directory; then start the node again."
                    ) from None
                if time.monotonic() > deadline_s:
                    raise
                if not waiting:
                    self._log(f"Waiting up to {_WAIT_FOR_WRITER_S} seconds: {error}")
                waiting = True
            time.sleep(0.1)

    def _log_notices(self, backend: Backend) -> None:
        while backend.notices:
            self._log(backend.notices.pop(0))

    def _storage(self) -> Storage:
        # SQLite puts its journal beside the file itself, not beside a link to it.
        directory = os.path.dirname(os.path.realpath(self._database))
        return Storage(boot_id(), mount_identity(directory))

    def _explain(
        self, decision: Decision, stands_at: int, backend: Backend, loss: Loss | None
    ) -> str:
        where = (
            f"the database {self._database} is at version {stands_at}, the backup "
            f"{redacted(backend.url)} at {backend.version}"
        )
        database = self._database
        restore = (
            f"move {database} away (with -journal and -wal; keep it), then run: "
            f"backup-cli restore {quote(redacted(backend.url))} {quote(database)}"
        )
        if decision is Decision.GAP:
            return (
                f"Backup is out of date: {where}. The node ran without its backup, or made a last "
                "commit while it shut down. The database is the newer one and is safe; the node "
                "stays down until the backup has it too. Run: "
                f"backup-cli snapshot --lightning-dir {quote(self._directory)}"
                + (f". But first: {self._wrong_lock}" if self._wrong_lock else "")
            )
        if decision is Decision.ROLL_FORWARD:
            assert loss is not None
            return (
                "Core Lightning may have lost its last changes with the power or the disk: "
                f"{where}, and {loss.value}. SQLite may have taken back what the node had "
                "committed and told its peers, so the backup may have the only copy. It is safe "
                f"to bring the database forward to it: {restore}"
            )
        return (
            f"Core Lightning seems to have lost some state (failed restore?): {where}. A node that "
            "goes on from an old database can lose its funds. Was an old copy of the database put "
            f"here, or another node's? If the backup is this node's, {restore}"
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
        """How long ago the last change was stored, as far as that is known."""
        at = self._last_answer_at
        if at is None and self.backend is not None:
            at = self.backend.last_change_at
        return None if at is None else max(0.0, time.time() - at)

    def compacted(self) -> None:
        """Takes note that a compaction was finished now; `write_notes` makes it durable."""
        self._compacted_at = time.time()

    def write_notes(self) -> None:
        """Writes what was noted to `backup.state`, at a moment when the node does not wait.

        Raises:
            StorageError, BadSettings: the note is lost; the backup is not touched by it.
        """
        if self._compacted_at is not None:
            state = read_state(self._directory)
            write_state(self._directory, state._replace(last_compaction_at=self._compacted_at))
            self._compacted_at = None

    def last_compaction_at(self) -> float | None:
        """When the last compaction was finished, in seconds since 1970."""
        return self._compacted_at or read_state(self._directory).last_compaction_at

    def close(self) -> None:
        """Lets go of the backup."""
        if self.backend is not None:
            self.backend.close()


def _is_of_this_node(process: int) -> bool:
    """Whether another process was started by the lightningd that started this one."""
    try:
        return lightningd_above(process) == lightningd_above()
    except OSError:  # it has ended meanwhile
        return False


def _node_id_of(database: str) -> str | None:
    if not os.path.isfile(database) or not os.path.getsize(database):
        return None
    from cln_backup.replay.replica import node_id_of

    return node_id_of(database)
