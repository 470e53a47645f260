"""The state of a backup as the node's directory has it, with the node running or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from cln_backup.node.settings import read_state
from cln_backup.replay.note import read_note

if TYPE_CHECKING:
    from cln_backup.node.settings import Alarm


class NodeState(NamedTuple):
    """The follower's last proof and alarm, and the last drill.

    Attributes:
        proven_version: the data version up to which the follower has replayed the backup.
        proven_at: when it found that, in seconds since 1970.
        replica_dir: where its replica is; `None` if there is none.
        alarm: a fault of the backup that no start has healed yet.
        drilled_at: when `backup-cli drill` last ended, in seconds since 1970.
        drill_passed: whether the restored database was the node's.
    """

    proven_version: int | None
    proven_at: float | None
    replica_dir: str | None
    alarm: Alarm | None
    drilled_at: float | None
    drill_passed: bool | None

    def fields(self) -> dict[str, Any]:
        """The state as JSON has it, without the proof."""
        fields = self._asdict() | {"alarm": None if self.alarm is None else self.alarm._asdict()}
        del fields["proven_version"], fields["proven_at"]
        return fields


def node_state(directory: str) -> NodeState:
    """Reads the state in a network directory. Raises `BadSettings`."""
    state = read_state(directory)
    noted = None if state.replica_dir is None else read_note(state.replica_dir)
    version, at = (None, None) if noted is None else (noted.proven_version, noted.proven_at)
    drill = state.drilled_at, state.drill_passed
    return NodeState(version, at, state.replica_dir, state.alarm, *drill)
