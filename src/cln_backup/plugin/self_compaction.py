"""Compaction by itself: looks now and then whether the policy wants one, and starts it."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import BackupError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cln_backup.backends.contract import Writer
    from cln_backup.compaction.policy import Facts, Limits
    from cln_backup.node.settings import State
    from cln_backup.plugin.compact_command import CompactCommand
    from cln_backup.plugin.replicator import Replicator

_LOOK_S: Final = 60.0
_LOOK_CHANGES: Final = 2000
"""A look takes some milliseconds where the log has 500 segments: a few microseconds a change."""


class SelfCompaction:
    """Decides between two calls of the node; the work is done by another process."""

    def __init__(
        self, replicator: Replicator, command: CompactCommand, log: Callable[[str, str], None]
    ) -> None:
        self._replicator = replicator
        self._command = command
        self._log = log
        self._limits: Limits | None = None
        self._look_at = math.inf
        self._look_version = 0
        self._look_changes = _LOOK_CHANGES
        self._began_at = time.time()
        self._told = ""

    def begin(self, options: Mapping[str, object]) -> None:
        """Takes the options, after `init`; warns about invalid ones."""
        from cln_backup.plugin.compaction_options import limits_of

        self._limits = limits_of(options, self._log)
        if self._limits is not None:
            self._look_changes = min(_LOOK_CHANGES, max(1, self._limits.max_changes // 10))
            self._look_at = time.monotonic()

    def timeout_ms(self) -> float | None:
        """The time until the next look; `None` if there is none."""
        if self._look_at == math.inf or not self._command.is_ready():
            return None
        return max(0.0, self._look_at - time.monotonic()) * 1000

    def look(self) -> None:
        """Starts a compaction if one is due; looks only if enough time or changes have passed.

        Call it when the node does not wait.
        """
        backend = self._replicator.backend
        if self._limits is None or backend is None or not self._command.is_ready():
            return
        version = backend.version
        if time.monotonic() < self._look_at and version < self._look_version:
            return
        self._look_at = time.monotonic() + _LOOK_S
        self._look_version = version + self._look_changes
        try:
            state = self._replicator.state()  # with an alarm that is not written yet
            if state.alarm is not None or state.restore_point is not None:
                return  # what a compaction would fold may still be needed
            facts = self._facts(backend, state)
        except BackupError as error:
            self._tell_once(f"Cannot find out whether to compact: {error}")
            return
        if facts is None:  # a server compacts by itself
            self._limits, self._look_at = None, math.inf
            return
        from cln_backup.compaction.policy import due

        reason = due(facts, self._limits, self._command.past())
        if reason is not None:
            self._command.start_by_itself(backend, reason.value)

    def _facts(self, backend: Writer, state: State) -> Facts | None:
        from cln_backup.compaction.facts import facts_of

        return facts_of(backend, self._began_at, state.last_compaction_at)

    def _tell_once(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._log("warn", text)

    def status(self) -> dict[str, object]:
        """The fields of `backup-status`; looks next if one is due. Raises `BackupError`."""
        backend, bound, reason = self._replicator.backend, None, None
        if self._limits is not None and backend is not None:
            from cln_backup.compaction.policy import due, space_bound_bytes

            facts = self._facts(backend, self._replicator.state())
            if facts is not None:
                bound = space_bound_bytes(facts, self._limits, backend.place.keeps)
                reason = due(facts, self._limits, self._command.past()._replace(failures=0))
        if reason is not None:
            self._look_at = time.monotonic()
        return {
            "next_compaction": None if reason is None else reason.value,
            "space_bound_bytes": bound,
        }
