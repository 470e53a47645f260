"""Proof that the backup restores: the follower's, SQLite's integrity check, the last drill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.model.health import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterator


_DAY_S: Final = 86_400.0
_OLD_CHECK_S: Final = 30 * _DAY_S
_OLD_PROOF_S: Final = 7 * _DAY_S


class Proofs(NamedTuple):
    """The last proofs, with times in seconds since 1970; `None` if there was none.

    Attributes:
        now: the current time.
        runs: whether the node runs, with the plugin.
        proven_version, proven_at: how far the backup was replayed.
        version: of the backup; `None` if unknown.
        checked_at: the last integrity check of the replica; only while the node runs.
        drilled_at: the last drill.
        next_compaction: why one is due.
        compacting: whether one is running.
        compacts: whether the backup compacts by itself; `None` if unknown.
        migration: the data version before a migration that was not seen to end.
        rolls_forward: whether a roll forward of the database is to be completed.
    """

    now: float
    runs: bool
    proven_version: int | None = None
    proven_at: float | None = None
    version: int | None = None
    checked_at: float | None = None
    drilled_at: float | None = None
    next_compaction: str | None = None
    compacting: bool = False
    compacts: bool | None = None
    migration: int | None = None
    rolls_forward: bool = False


def judge(proofs: Proofs) -> Iterator[Finding]:
    """The findings about proofs, compactions and migrations.

    A proof that lags, a drill that is old or failed, and an alarm are found by the state of the
    node itself.
    """
    if proofs.proven_at is None:
        yield Finding(
            "not-proven",
            Level.WARNING,
            "No replay has proven yet that the backup restores.",
            "Leave the follower on (lightningd's option backup-follower), or run `backup-cli "
            "drill`.",
        )
    elif not proofs.runs and (proofs.version or 0) > (proofs.proven_version or 0):
        yield Finding(
            "not-proven",
            Level.WARNING,
            f"The backup is at data version {proofs.version}, and proven up to "
            f"{proofs.proven_version}, {_days(proofs.now - proofs.proven_at)} ago.",
            "The follower continues when the node runs. Until then: `backup-cli verify`.",
        )
    else:
        text = f"The backup was replayed up to data version {proofs.proven_version}."
        yield Finding("not-proven", Level.GOOD, text)
    if proofs.checked_at is not None and proofs.now - proofs.checked_at > _OLD_CHECK_S:
        yield Finding(
            "check-old",
            Level.WARNING,
            "SQLite's integrity check of the replica last passed "
            f"{_days(proofs.now - proofs.checked_at)} ago.",
            "The machine may be too busy for the follower. Run `backup-cli drill`.",
        )
    if proofs.drilled_at is None:
        yield Finding(
            "never-drilled",
            Level.WARNING,
            "A restore was never rehearsed on this node.",
            "Run `backup-cli drill`; the node may run meanwhile.",
        )
    else:
        yield Finding("never-drilled", Level.GOOD, "A restore was rehearsed.")
    if proofs.next_compaction is not None and not proofs.compacting:
        yield Finding(
            "compaction-due",
            Level.WARNING,
            f"A compaction is due and does not run: {proofs.next_compaction}.",
            "If it stays so, lightningd's log says why (`Compaction failed`): mostly there is too "
            "little room. Each change is stored meanwhile.",
        )
    elif proofs.compacts is False:
        yield Finding(
            "compaction-off",
            Level.WARNING,
            "The backup does not compact by itself (backup-compact=off): it grows, and a restore "
            "takes longer and longer.",
            "Run `lightning-cli backup-compact` from time to time, or remove the option.",
        )
    if proofs.migration is not None and not proofs.runs:
        yield Finding(
            "migration-open",
            Level.WARNING,
            "A migration of the database was not seen to end. It began at data version "
            f"{proofs.migration}.",
            "Start the node. If it cannot start: `backup-cli undo-migration`.",
        )
    if proofs.rolls_forward and not proofs.runs:
        yield Finding(
            "to-be-rolled-forward",
            Level.WARNING,
            "The database lost its last changes with the power or its disk, and is to be rolled "
            "forward to the backup.",
            "Start the node; or run `backup-cli rollforward`, and then start it.",
        )


def _days(seconds: float) -> str:
    if seconds < 2 * _DAY_S:
        return f"{seconds / 3600:.0f} hours"
    return f"{seconds / _DAY_S:.0f} days"
