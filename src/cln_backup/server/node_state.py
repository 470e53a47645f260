"""The state of one node's backup on a server, as of its last write: for metrics and the monitor."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from cln_backup.backends import place_at, redacted
from cln_backup.model.errors import BackupError
from cln_backup.monitor.state import Fault, NodeState
from cln_backup.server.sealed import Sealed
from cln_backup.server.served import Served
from cln_backup.storage import scratch

if TYPE_CHECKING:
    from cln_backup.server.node import Node


def state_of(node: Node) -> NodeState:
    """The state of a node; this waits for nothing. `version_count` of a sealed one: its objects."""
    state = NodeState(
        at=time.time(),
        connected=node.connections() > 0,
        backend_url=redacted(node.url),
        free_bytes=_free_bytes(node.url),
    )
    if isinstance(node, Sealed):
        return msgspec.structs.replace(
            state,
            backupsize=node.size_bytes(),
            version_count=node.objects,
            quota_bytes=node.quota_bytes or None,
            last_change_age_s=_age_s(node.last_stored_at),
        )
    if isinstance(node, Served):
        state = _with_proof(state, node)
        last = node.last
        if last is not None:
            state = msgspec.structs.replace(
                state,
                version=last.version,
                version_count=last.version_count,
                backupsize=node.size_bytes(),
                last_change_age_s=_age_s(last.changed_at_ms / 1000 or None),
            )
    return state


def _with_proof(state: NodeState, node: Served) -> NodeState:
    proof, progress, alarm = node.proof, node.proof.progress, node.proof.alarm
    if progress is not None:
        state = msgspec.structs.replace(
            state,
            follower="following" if progress.trouble is None else f"waiting: {progress.trouble}",
            proven_version=progress.proven_version,
            proven_at=progress.proven_at,
            proof_lag_s=proof.lag_s(),
            replica_checked_at=progress.checked_at,
            foreign_key_faults=progress.foreign_key_faults,
        )
    return msgspec.structs.replace(
        state,
        space_bound_bytes=node.space_bound_bytes,
        last_compaction_at=node.compacted_at,
        compacting=node.compacting,
        alarm=None if alarm is None else Fault(alarm.kind, alarm.text, proof.alarm_at),
    )


def _age_s(at: float | None) -> float | None:
    return None if at is None else max(0.0, time.time() - at)


def _free_bytes(url: str) -> int | None:
    try:
        return scratch.free_bytes(place_at(url).storage_dir)
    except BackupError:
        return None
