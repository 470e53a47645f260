"""The command `backup-status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup import __version__
from cln_backup.backends import redacted
from cln_backup.backends.ticket import size_of

if TYPE_CHECKING:
    from cln_backup.plugin.compact_command import CompactCommand
    from cln_backup.plugin.following import Following
    from cln_backup.plugin.hook import Hook
    from cln_backup.plugin.replicator import Replicator
    from cln_backup.plugin.self_compaction import SelfCompaction


def status(
    replicator: Replicator,
    hook: Hook,
    compaction: CompactCommand,
    by_itself: SelfCompaction,
    following: Following,
) -> dict[str, object]:
    """The state of the backup, and how long the node waits for it."""
    backend = replicator.backend
    if backend is None:
        return {"protected": False, "halted": hook.halted}
    times, state = replicator.answer_times_us(), replicator.state()
    return {
        "protected": hook.halted is None,
        "halted": hook.halted,
        "backend_url": redacted(backend.place.url),
        "version": backend.version,
        **size_of(backend),
        "last_change_age_s": replicator.last_change_age_s(),
        "last_compaction_at": state.last_compaction_at,
        "compacting": compaction.is_under_way(),
        **by_itself.status(),
        **following.status(),
        "drilled_at": state.drilled_at,
        "drill_passed": state.drill_passed,
        "answer_p50_us": None if times is None else times[0],
        "answer_p99_us": None if times is None else times[1],
        "release": __version__,
    }
