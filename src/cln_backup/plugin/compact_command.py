"""The command `backup-compact`: a compaction beside the node's writes, and its answer."""

from __future__ import annotations

import json
import os
import select
import time
from typing import TYPE_CHECKING

from cln_backup.backends.ticket import size_of
from cln_backup.model.errors import BackupError
from cln_backup.plugin import jsonrpc
from cln_backup.plugin.manifest import SCRATCH_OPTION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import msgspec

    from cln_backup.backends.contract import Writer
    from cln_backup.backends.ticket import Statistics
    from cln_backup.compaction.compactor import Compactor
    from cln_backup.compaction.messages import CompactionAnswer
    from cln_backup.compaction.policy import Past
    from cln_backup.follower.helper import FollowerHelper
    from cln_backup.plugin.following import Following
    from cln_backup.plugin.replicator import Replicator


class CompactCommand:
    """At most one compaction at a time; it advances with each message of its child process."""

    def __init__(
        self,
        replicator: Replicator,
        following: Following,
        log: Callable[[str, str], None],
        poll: select.poll,
    ) -> None:
        """Registers with `poll`, which reports when to call `go_on`."""
        self._replicator = replicator
        self._following = following
        following.on_compaction = self._go_on_from_follower
        self._log = log
        self._poll = poll
        self._compactor: Compactor | None = None
        self._request_id: bytes | None = None
        self._runs_by_itself = self._if_it_pays = False
        self._helper: FollowerHelper | None = None
        self._scratch_dir: str | None = None
        self._failures = 0
        self._failed_at = 0.0
        self._refused_log_bytes = 0

    def begin(self, options: Mapping[str, object]) -> None:
        """Takes the option `backup-scratch-dir`; removes the leftovers of killed compactions."""
        from cln_backup.storage import scratch

        scratch_dir = options.get(SCRATCH_OPTION)
        self._scratch_dir = str(scratch_dir) if scratch_dir else None
        backend = self._replicator.backend
        beside = None if backend is None else backend.place.scratch_dir
        places = {os.getcwd(), self._scratch_dir, beside}
        scratch.clear_beside(place for place in places if place is not None)

    def is_under_way(self) -> bool:
        """Whether a compaction is running."""
        return self._compactor is not None

    def is_ready(self) -> bool:
        """Whether one can start by itself: none runs, and the follower has not just begun."""
        return self._compactor is None and not self._following.is_starting()

    def is_at(self, fd: int) -> bool:
        """Whether this descriptor of `poll` is the compaction's."""
        return self._compactor is not None and fd == self._compactor.fileno()

    def start(self, request_id: bytes, backend: Writer | None, params: msgspec.Raw) -> None:
        """Starts a compaction, or answers why it cannot.

        One that runs by itself gets the request: its result is the answer. `backend` is `None`
        while the node is not up. `params` are the request's.
        """
        try:
            force = jsonrpc.asks_for_force(params)
        except BackupError as error:
            jsonrpc.write(jsonrpc.error(request_id, str(error)))
            return
        if backend is not None and self._runs_by_itself and not force:
            self._request_id, self._runs_by_itself = request_id, False
            return
        if backend is None or self._compactor is not None:
            why = "a compaction is running" if self._compactor else "the node is not up yet"
            jsonrpc.write(jsonrpc.error(request_id, f"Cannot compact now: {why}."))
            return
        self._request_id = request_id
        self._tell_start(backend)
        try:
            self._start(backend, if_it_pays=not force)
        except BackupError as error:
            self._fail(error)

    def start_by_itself(self, backend: Writer, reason: str) -> None:
        """Starts a compaction without a request. A failure is logged."""
        self._tell_start(backend, f", because {reason}")
        try:
            self._start(backend, if_it_pays=True)
            self._runs_by_itself = self._compactor is not None
        except BackupError as error:
            self._fail(error)

    def past(self) -> Past:
        """The attempts since the last compaction, for the policy."""
        from cln_backup.compaction.policy import Past

        failed_ago_s = time.monotonic() - self._failed_at
        return Past(self._failures, failed_ago_s, self._refused_log_bytes)

    def _tell_start(self, backend: Writer, why: str = "") -> None:
        stats = json.dumps({"before": size_of(backend)})
        self._log("info", f"Starting compaction{why}: stats={stats}")

    def _start(self, backend: Writer, *, if_it_pays: bool, asks_follower: bool = True) -> None:
        from cln_backup.compaction.compactor import Compactor

        helper = self._following.helper() if asks_follower else None
        compactor = Compactor(
            backend,
            # The network directory has the node's database, which is not encrypted either.
            self._scratch_dir or (None if backend.place.scratch_dir else os.getcwd()),
            if_it_pays=if_it_pays,
            follower=helper,
        )
        if compactor.done is not None:
            self._succeed(compactor.done)
            return
        self._compactor, self._helper, self._if_it_pays = compactor, helper, if_it_pays
        if not compactor.is_followers():
            self._poll.register(compactor.fileno(), select.POLLIN)

    def go_on(self) -> None:
        """Handles a message of the child process; at the end, answers the request."""
        assert self._compactor is not None
        self._advance(self._compactor.step)

    def _go_on_from_follower(self, number: int, said: CompactionAnswer | None) -> None:
        """Handles a message of the follower, or its end; then a child process does the work."""
        compactor, helper = self._compactor, self._helper
        if said is not None and (helper is None or number != helper.number):
            answer = type(said).__name__
            self._log("debug", f"Ignored {answer} about a compaction that was given up.")
            return
        if compactor is None or helper is None:
            return
        from cln_backup.compaction.messages import Declined, NotPrepared

        if said is None or isinstance(said, Declined):
            self._start_again()
        elif isinstance(said, NotPrepared):
            from cln_backup.process.channel import error_of

            self._end()
            self._fail(error_of(said.error, "compacts"))
        else:
            self._advance(lambda: compactor.take(said))

    def _start_again(self) -> None:
        """Starts the compaction again, without the follower."""
        by_itself, backend = self._runs_by_itself, self._replicator.backend
        assert backend is not None
        self._end()
        try:
            self._start(backend, if_it_pays=self._if_it_pays, asks_follower=False)
            self._runs_by_itself = by_itself and self._compactor is not None
        except BackupError as error:
            self._fail(error)

    def _advance(self, step: Callable[[], Statistics | None]) -> None:
        try:
            statistics = step()
        except BackupError as error:
            self._end()
            self._fail(error)
        else:
            if statistics is not None:
                self._end()
                self._succeed(statistics)

    def _end(self) -> None:
        if self._compactor is not None:
            if not self._compactor.is_followers():
                self._poll.unregister(self._compactor.fileno())
            self._compactor.close()
            self._compactor = self._helper = None
            self._runs_by_itself = False

    def _succeed(self, statistics: Statistics) -> None:
        self._replicator.note(last_compaction_at=time.time())
        self._failures = self._refused_log_bytes = 0
        done = "Compaction finished"
        if "would_be" in statistics:
            done = "Not compacted: it would not get smaller"
            backend = self._replicator.backend
            found = None if backend is None else backend.generation()
            self._refused_log_bytes = 0 if found is None else found.log_bytes
        self._log("info", f"{done}: stats={json.dumps(statistics)}")
        if self._request_id is not None:
            jsonrpc.write(jsonrpc.answer(self._request_id, statistics))
            self._request_id = None

    def _fail(self, error: BackupError) -> None:
        self._failures += 1
        self._failed_at = time.monotonic()
        self._log("warn", f"Compaction failed: {error}")
        if self._request_id is not None:
            jsonrpc.write(jsonrpc.error(self._request_id, str(error)))
            self._request_id = None

    def forget_request(self) -> None:
        """Drops the request without an answer: lightningd forgets it when it shuts down."""
        self._request_id = None

    def close(self) -> None:
        """Aborts the compaction without waiting; the backup is unchanged."""
        self._end()
