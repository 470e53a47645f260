"""The state of one node, as its plugin or its server tells it, and what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from cln_backup.model.health import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterator

SILENCE_S: Final = 60.0
"""A plugin that tells nothing for so long waits for its backup, and the node waits for it."""

_LAG_S: Final = 900.0
_AWAY_S: Final = 600.0
_SLOW_US: Final = 1_000_000
_DRILL_S: Final = 90 * 86_400.0
_LEAST_ROOM_BYTES: Final = 64 << 20
_FULL: Final = 0.9


class Fault(msgspec.Struct, frozen=True):
    """A fault that the follower has found in a backup; see `node.settings.Alarm`."""

    kind: str
    text: str
    at: float


class Noted(msgspec.Struct, frozen=True):
    """Something that opening or repairing the backup has told, at a time in seconds since 1970."""

    at: float
    text: str


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    """One node. Fields without a comment are those of `backup-status` (docs/cli.md).

    Attributes:
        at: when this was told, in seconds since 1970.
        protected: `None` if a server tells it, which does not see the node itself.
        ended: why the node has ended without having been stopped; `None` if it has not.
        important: whether the plugin was loaded as important; `None` if that is not known yet.
        connected: whether the node is connected to the server; `None` beside a node.
        away_s: for how long it has not been.
        free_bytes: room on the disk of the backup; `None` if that is not on this machine.
        quota_bytes: the most that a sealed backup may use.
        notices: the last ones of the backup.
    """

    at: float
    protected: bool | None = None
    halted: str | None = None
    ended: str | None = None
    important: bool | None = None
    connected: bool | None = None
    away_s: float | None = None
    backend_url: str = ""
    version: int | None = None
    backupsize: int | None = None
    version_count: int | None = None
    last_change_age_s: float | None = None
    last_compaction_at: float | None = None
    compacting: bool = False
    next_compaction: str | None = None
    space_bound_bytes: int | None = None
    free_bytes: int | None = None
    quota_bytes: int | None = None
    follower: str | None = None
    proven_version: int | None = None
    proven_at: float | None = None
    proof_lag_s: float | None = None
    replica_checked_at: float | None = None
    foreign_key_faults: int | None = None
    database_compared_at: float | None = None
    alarm: Fault | None = None
    drilled_at: float | None = None
    drill_passed: bool | None = None
    answer_p50_us: int | None = None
    answer_p99_us: int | None = None
    release: str = ""
    notices: tuple[Noted, ...] = ()


def state_of(fields: dict[str, Any]) -> NodeState:
    """The state with some fields, of which those it does not have are ignored."""
    return msgspec.convert(fields, NodeState)


def findings(state: NodeState, now: float, silent_s: float = 0.0) -> list[Finding]:
    """The findings about a node at a time in seconds since 1970; one that is good if nothing is."""
    found = [*_of_the_node(state, silent_s), *_of_the_backup(state), *_of_proofs(state, now)]
    if not found:
        text = "Each change is stored before the node commits it."
        if state.protected is None:
            text = "The backup is served, and no fault is known."
        found.append(Finding("not-protected", Level.GOOD, text))
    return found


def _of_the_node(state: NodeState, silent_s: float) -> Iterator[Finding]:
    if state.halted is not None:
        yield Finding(
            "halted",
            Level.BAD,
            f"The plugin has halted the node: {state.halted}",
            "The transaction was not committed, and the backup is unchanged. Look the reason up "
            "in docs/tasks/when-the-node-stops.md, and never start the node without the plugin.",
        )
    elif state.ended is not None:
        yield Finding(
            "node-ended",
            Level.BAD,
            f"The node has ended without having been stopped: {state.ended}",
            "Each change that it committed is in the backup. Read lightningd's log and start it "
            "again; the start puts right what the end left.",
        )
    elif state.protected is False:
        yield Finding(
            "not-protected",
            Level.BAD,
            "The backup is not open: changes of this node are not stored.",
            "Run `lightning-cli backup-status`, and read the lines of cln-backup in the log.",
        )
    elif state.protected and silent_s > SILENCE_S:
        yield Finding(
            "no-answer",
            Level.BAD,
            f"The plugin has told nothing for {_span(silent_s)}: the node may be waiting for "
            "its backup.",
            "Look at the place of the backup: its disk, its server, the network. If lightning-cli "
            "does not answer either, the log says what the plugin waits for. Nothing is lost.",
        )
    if state.important is False:
        yield Finding(
            "not-important",
            Level.WARNING,
            "The plugin is not loaded as important: if all its processes die, the node continues "
            "without a backup.",
            "Write important-plugin= instead of plugin= into the configuration, start again.",
        )
    if state.connected is False and (state.away_s or 0.0) > _AWAY_S:
        yield Finding(
            "node-away",
            Level.WARNING,
            f"The node has not been connected for {_span(state.away_s or 0.0)}.",
            "Look whether it runs. A node that runs without this server has no backup here.",
        )


def _of_the_backup(state: NodeState) -> Iterator[Finding]:
    if state.alarm is not None:
        yield Finding(
            state.alarm.kind,
            Level.BAD,
            f"The backup has a fault: {state.alarm.text}",
            "Each change is still stored. Start the node again: the start makes a fresh snapshot, "
            "and keeps the earlier history.",
        )
    if state.free_bytes is not None:
        grows = (state.space_bound_bytes or 0) - (state.backupsize or 0)
        if state.free_bytes < _LEAST_ROOM_BYTES:
            yield Finding("room", Level.BAD, *_room(state.free_bytes))
        elif state.free_bytes < max(grows, 2 * _LEAST_ROOM_BYTES):
            yield Finding("room", Level.WARNING, *_room(state.free_bytes))
    if state.quota_bytes and (state.backupsize or 0) > _FULL * state.quota_bytes:
        yield Finding(
            "quota",
            Level.WARNING,
            f"{state.backupsize:,} of {state.quota_bytes:,} bytes of the quota are used.",
            "Run `backup-cli compact`, or raise quota= in the server's list of nodes.",
        )
    if state.answer_p50_us is not None and state.answer_p50_us > _SLOW_US:
        yield Finding(
            "slow",
            Level.WARNING,
            f"The node waits {state.answer_p50_us / 1e6:.1f} s for the backup at each change.",
            "Payments fail when nodes wait long. Look at the disk or the network of the backup.",
        )


def _of_proofs(state: NodeState, now: float) -> Iterator[Finding]:
    if state.follower == "off":
        yield Finding(
            "not-followed",
            Level.WARNING,
            "No process replays the backup: that it restores is not proven.",
            "Leave backup-follower on, or run `backup-cli drill` from time to time.",
        )
    elif (state.proof_lag_s or 0.0) > _LAG_S:
        yield Finding(
            "proof-lag",
            Level.WARNING,
            f"The follower lags the backup by {_span(state.proof_lag_s or 0.0)}"
            + ("." if not (state.follower or "").startswith("waiting") else f": {state.follower}."),
            "Each change is stored. The machine may be too busy, or the replica's disk full.",
        )
    if state.drill_passed is False:
        yield Finding(
            "drill-failed",
            Level.BAD,
            "The last rehearsal of a restore failed.",
            "Run `backup-cli drill` again and read its reason before you need the backup.",
        )
    elif state.drilled_at is not None and now - state.drilled_at > _DRILL_S:
        yield Finding(
            "drill-old",
            Level.WARNING,
            f"The last rehearsal of a restore was {_span(now - state.drilled_at)} ago.",
            "Run `backup-cli drill`.",
        )


def _room(free_bytes: int) -> tuple[str, str]:
    return (
        f"The disk of the backup has {free_bytes / 1e6:,.0f} MB left.",
        "Free some space. If the disk is full, the node stops at its next change, without a loss.",
    )


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
