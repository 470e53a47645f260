"""The command `backup-compact`: a compaction beside the node's writes, and its answer."""

from __future__ import annotations

import json
import os
import select
from typing import TYPE_CHECKING

from cln_backup.backends.contract import size_of
from cln_backup.model.errors import BackupError
from cln_backup.plugin import jsonrpc

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from cln_backup.backends.contract import Backend, Statistics
    from cln_backup.compaction.compactor import Compactor
    from cln_backup.plugin.replicator import Replicator


class CompactCommand:
    """At most one compaction at a time, which goes on whenever its second process says something.

    Attributes:
        noted: whether the replicator has a note of it that is not yet written.
    """

    def __init__(
        self, replicator: Replicator, log: Callable[[str, str], None], poll: select.poll
    ) -> None:
        """Shows at `poll` when `go_on` has something to do."""
        self._replicator = replicator
        self._log = log
        self._poll = poll
        self._compactor: Compactor | None = None
        self._request_id: bytes | None = None
        self._scratch_dir: str | None = None
        self.noted = False

    def begin(self, scratch_dir: object) -> None:
        """Takes the option `backup-scratch-dir`, and has what killed compactions left removed."""
        from cln_backup.storage import scratch

        self._scratch_dir = str(scratch_dir) if scratch_dir else None
        backend = self._replicator.backend
        beside = None if backend is None else backend.scratch_dir
        places = {os.getcwd(), self._scratch_dir, beside}
        scratch.clear_beside(place for place in places if place is not None)

    def is_under_way(self) -> bool:
        """Whether there is a compaction."""
        return self._compactor is not None

    def is_at(self, fd: int) -> bool:
        """Whether `poll` gave this descriptor for the compaction."""
        return self._compactor is not None and fd == self._compactor.fileno()

    def start(self, request_id: bytes, backend: Backend | None, params: msgspec.Raw) -> None:
        """Begins a compaction, or answers why there is none.

        `backend` is `None` while the node is not up. `params` are the request's.
        """
        try:
            force = jsonrpc.asks_for_force(params)
        except BackupError as error:
            jsonrpc.write(jsonrpc.error(request_id, str(error)))
            return
        if backend is None or self._compactor is not None:
            why = "a compaction is under way" if self._compactor else "the node is not up"
            jsonrpc.write(jsonrpc.error(request_id, f"Cannot compact now: {why}."))
            return
        self._log("info", f"Starting compaction: stats={json.dumps({'before': size_of(backend)})}")
        from cln_backup.compaction.compactor import Compactor

        try:
            if backend.exclusive:
                self._log(
                    "warn",
                    "The backup's server serves one program at a time: should the node write to "
                    "its database now, it waits until the server has compacted.",
                )
                statistics = backend.compact()
                assert statistics is not None
                self._note(statistics)
                jsonrpc.write(jsonrpc.answer(request_id, statistics))
                return
            # The network directory holds the node's database, which is not encrypted either.
            place = self._scratch_dir or (None if backend.scratch_dir else os.getcwd())
            self._compactor = Compactor(backend, place, if_it_pays=not force)
        except BackupError as error:
            jsonrpc.write(jsonrpc.error(request_id, str(error)))
            return
        self._request_id = request_id
        self._poll.register(self._compactor.fileno(), select.POLLIN)

    def go_on(self) -> None:
        """Takes what the second process says; at the end, answers who asked."""
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

    def forget_request(self) -> None:
        """Answers nobody any more: lightningd forgets what it asked before it shuts down."""
        self._request_id = None

    def close(self) -> None:
        """Gives up what is under way; the backup is as before, and nobody is waited for."""
        if self._compactor is not None:
            self._poll.unregister(self._compactor.fileno())
            self._compactor.close()
            self._compactor = None
