"""The command `backup-compact`: a compaction beside the node's writes, and its answer."""

from __future__ import annotations

import json
import os
import select
from typing import TYPE_CHECKING

from cln_backup.backends.ticket import size_of
from cln_backup.model.errors import BackupError
from cln_backup.plugin import jsonrpc

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from cln_backup.backends.contract import Writer
    from cln_backup.backends.ticket import Statistics
    from cln_backup.compaction.compactor import Compactor
    from cln_backup.plugin.replicator import Replicator


class CompactCommand:
    """At most one compaction at a time; it advances with each message of its child process.

    Attributes:
        noted: whether the replicator has recorded it, but not yet written the record.
    """

    def __init__(
        self, replicator: Replicator, log: Callable[[str, str], None], poll: select.poll
    ) -> None:
        """Registers with `poll`, which reports when to call `go_on`."""
        self._replicator = replicator
        self._log = log
        self._poll = poll
        self._compactor: Compactor | None = None
        self._request_id: bytes | None = None
        self._scratch_dir: str | None = None
        self.noted = False

    def begin(self, scratch_dir: object) -> None:
        """Takes the option `backup-scratch-dir`; removes the leftovers of killed compactions."""
        from cln_backup.storage import scratch

        self._scratch_dir = str(scratch_dir) if scratch_dir else None
        backend = self._replicator.backend
        beside = None if backend is None else backend.place.scratch_dir
        places = {os.getcwd(), self._scratch_dir, beside}
        scratch.clear_beside(place for place in places if place is not None)

    def is_under_way(self) -> bool:
        """Whether a compaction is running."""
        return self._compactor is not None

    def is_at(self, fd: int) -> bool:
        """Whether this descriptor of `poll` is the compaction's."""
        return self._compactor is not None and fd == self._compactor.fileno()

    def start(self, request_id: bytes, backend: Writer | None, params: msgspec.Raw) -> None:
        """Starts a compaction, or answers why it cannot.

        `backend` is `None` while the node is not up. `params` are the request's.
        """
        try:
            force = jsonrpc.asks_for_force(params)
        except BackupError as error:
            jsonrpc.write(jsonrpc.error(request_id, str(error)))
            return
        if backend is None or self._compactor is not None:
            why = "a compaction is running" if self._compactor else "the node is not up yet"
            jsonrpc.write(jsonrpc.error(request_id, f"Cannot compact now: {why}."))
            return
        self._log("info", f"Starting compaction: stats={json.dumps({'before': size_of(backend)})}")
        from cln_backup.compaction.compactor import Compactor

        try:
            # The network directory has the node's database, which is not encrypted either.
            place = self._scratch_dir or (None if backend.place.scratch_dir else os.getcwd())
            compactor = Compactor(backend, place, if_it_pays=not force)
            if compactor.done is not None:
                self._note(compactor.done)
                jsonrpc.write(jsonrpc.answer(request_id, compactor.done))
                return
            self._compactor = compactor
        except BackupError as error:
            jsonrpc.write(jsonrpc.error(request_id, str(error)))
            return
        self._request_id = request_id
        self._poll.register(self._compactor.fileno(), select.POLLIN)

    def go_on(self) -> None:
        """Handles a message of the child process; at the end, answers the request."""
        assert self._compactor is not None
        answer = b""
        fd = self._compactor.fileno()
        try:
            statistics = self._compactor.step()
            if statistics is None:
                return
            self._note(statistics)
            if self._request_id is not None:
                answer = jsonrpc.answer(self._request_id, statistics)
        except BackupError as error:
            self._log("warn", f"Compaction failed: {error}")
            if self._request_id is not None:
                answer = jsonrpc.error(self._request_id, str(error))
        self._poll.unregister(fd)
        self._compactor.close()
        self._compactor = None
        self._request_id = None
        jsonrpc.write(answer)

    def _note(self, statistics: Statistics) -> None:
        self._replicator.compacted()
        self.noted = True
        done = "Compaction finished"
        if "would_be" in statistics:
            done = "Not compacted: it would not get smaller"
        self._log("info", f"{done}: stats={json.dumps(statistics)}")

    def write_notes(self) -> None:
        """Makes the replicator write its records, while the node does not wait."""
        self.noted = False
        try:
            self._replicator.write_notes()
        except BackupError as error:
            self._log("warn", str(error))

    def forget_request(self) -> None:
        """Drops the request without an answer: lightningd forgets it when it shuts down."""
        self._request_id = None

    def close(self) -> None:
        """Aborts the compaction without waiting; the backup is unchanged."""
        if self._compactor is not None:
            self._poll.unregister(self._compactor.fileno())
            self._compactor.close()
            self._compactor = None
