"""Compaction by itself on the server: looks now and then whether the policy wants one.

One backup at a time, in a thread of its own; the nodes do not wait for it. A node that starts may
be in the middle of a migration, whose restore point must stay: so a backup is compacted only when
its writer has been connected for a while, and never within a migration (`MigrationOpen`).
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.compaction.policy import NO_PAST, Past, due, space_bound_bytes
from cln_backup.model.errors import BackupError
from cln_backup.server.served import served_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cln_backup.compaction.policy import Facts, Limits
    from cln_backup.server.node import Node
    from cln_backup.server.served import Served

SETTLED_S: Final = 600.0
"""A start of lightningd, up to `init`, does not take so long."""

_LOOK_S: Final = 60.0

_log = logging.getLogger("cln_backup.server")


class _Attempt(NamedTuple):
    """The attempts of one backup since its last compaction, on the monotonic clock."""

    failures: int = 0
    failed_at: float = 0.0
    refused_log_bytes: int = 0

    def as_past(self) -> Past:
        """For the policy."""
        if self == _Attempt():
            return NO_PAST
        return Past(self.failures, time.monotonic() - self.failed_at, self.refused_log_bytes)


class SelfCompaction:
    """Compacts the backups of a server when the policy says so."""

    def __init__(
        self,
        nodes: Mapping[str, Node],
        limits: Limits,
        *,
        look_s: float = _LOOK_S,
        settled_s: float = SETTLED_S,
    ) -> None:
        self._nodes = nodes
        self._limits = limits
        self._look_s = look_s
        self._settled_s = settled_s
        self._attempts: dict[Served, _Attempt] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="compaction", daemon=True)

    def start(self) -> None:
        """Begins, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Ends without waiting: an unfinished compaction is removed when the process ends."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(self._look_s):
            nodes = list(served_of(self._nodes).values())
            self._attempts = {node: self._attempts.get(node, _Attempt()) for node in nodes}
            for node in nodes:
                try:
                    self.look(node)
                except BackupError as error:
                    node.say(logging.WARNING, f"Cannot find out whether to compact: {error}")
                except Exception:  # noqa: BLE001 - one backup's fault must touch no other
                    _log.exception("A bug in cln-backup; please report it")
                if self._stopping.is_set():
                    return

    def look(self, node: Served) -> None:
        """Compacts a backup if that is due; a failure is logged.

        Raises:
            BackupError: the storage of the backup cannot be looked at.
        """
        facts = node.facts()
        if facts is None:
            return
        keeps = node.keeps()
        node.space_bound_bytes = space_bound_bytes(facts, self._limits, keeps)
        attempt = self._attempts.get(node, _Attempt())
        reason = due(facts, self._limits, attempt.as_past())
        if reason is None or node.writer_since_s() < self._settled_s:
            return
        node.say(logging.INFO, f"Compacting, because {reason.value}")
        self._attempts[node] = self._compact(node, facts, attempt)

    def _compact(self, node: Served, facts: Facts, attempt: _Attempt) -> _Attempt:
        try:
            statistics = node.compact()
        except (BackupError, OSError) as error:
            node.say(logging.WARNING, f"The compaction failed; the backup is unchanged: {error}")
            failures = attempt.failures + 1
            return attempt._replace(failures=failures, failed_at=time.monotonic())
        if "would_be" in statistics:
            node.say(logging.INFO, "Not compacted: it would not get smaller")
            return _Attempt(refused_log_bytes=facts.generation.log_bytes)
        before, after = statistics["before"], statistics["after"]
        node.counters.self_compactions += 1
        node.say(
            logging.INFO,
            f"Compacted: {before['backupsize']} bytes in {before['version_count']} changes before, "
            f"{after['backupsize']} in {after['version_count']} after",
        )
        return _Attempt()
