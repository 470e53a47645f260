"""The way of a real change through a scratch backup at the same place, timed."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.model.change import Change
from cln_backup.model.errors import BackupError, BadUrl, Damaged
from cln_backup.model.health import Finding, Level
from cln_backup.storage import interruption

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.place import Place

CHANGES: Final = 50
_SIZES_BYTES: Final = (12_500, 10_300, 1_400, 300)
"""Of the changes that a routed payment makes in a recorded node."""

_BUMP: Final = "UPDATE vars SET intval = intval + 1 WHERE name = 'data_version' AND intval = {}"
_SLOW_MS: Final = 100.0
"""A payment makes some 24 changes, one after the other."""


class WriteTest(NamedTuple):
    """The result of a test.

    Attributes:
        changes: how many were appended and read back.
        size_bytes: of their statements.
        p50_ms, p99_ms: how long a node would have waited for one, in milliseconds; of so few, the
            99th percentile is the slowest.
    """

    changes: int
    size_bytes: int
    p50_ms: float
    p99_ms: float


def write_test(place: Place) -> WriteTest:
    """Appends changes to a scratch backup as a node would, reads them back, and removes it.

    Raises:
        BadUrl: there is no room for a scratch backup in such a place; nothing was written.
        Damaged: it does not give back what was written.
        StorageError, and other errors of the place.
    """
    written = list(_changes())
    waited_ms = []
    with interruption.deferred(), place.scratch_backup() as scratch:
        with scratch.open_writer() as writer:
            for change in written:
                begun = time.perf_counter()
                writer.store_change(change)
                waited_ms.append((time.perf_counter() - begun) * 1000)
                writer.settle()
                interruption.check()
        with scratch.open_reader() as reader:
            read = [list(change.transaction or ()) for change in reader.stream_changes()]
    if read != [change.transaction for change in written]:
        raise Damaged("The scratch backup does not give back what was written to it.")
    waited_ms.sort()
    size = sum(len(text) for change in written for text in change.transaction or ())
    return WriteTest(
        len(written), size, round(waited_ms[len(waited_ms) // 2], 3), round(waited_ms[-1], 3)
    )


def _changes() -> Iterator[Change]:
    for version in range(1, CHANGES + 1):
        text = os.urandom(_SIZES_BYTES[version % len(_SIZES_BYTES)] // 2).hex()
        update = f"UPDATE channels SET last_tx = X'{text}'"
        yield Change(version, None, [update, _BUMP.format(version - 1)])


def judge(tested: WriteTest | BackupError) -> Iterator[Finding]:
    """The findings about a test, or the error that ended it."""
    if isinstance(tested, BadUrl):
        yield Finding(
            "write-test",
            Level.WARNING,
            f"Writing was not tested: {tested}",
            "`lightning-cli backup-status` has the answer times of the running node.",
        )
    elif isinstance(tested, BackupError):
        yield Finding(
            "write-test",
            Level.BAD,
            f"The write test failed: {str(tested).rstrip('.')}.",
            "A node's change would fail there in the same way, and halt the node. Look at the "
            "disk, the server or the network of the backup.",
        )
    elif tested.p50_ms > _SLOW_MS:
        yield Finding(
            "write-test",
            Level.WARNING,
            f"{_text(tested)} That is slow: a payment makes some 24 changes, one after the other.",
            "Choose a faster disk, or a server that is nearer (docs/benchmarks.md has figures).",
        )
    else:
        yield Finding("write-test", Level.GOOD, _text(tested))


def _text(tested: WriteTest) -> str:
    return (
        f"{tested.changes} changes were stored and read back beside the backup: a node would have "
        f"waited {tested.p50_ms:.1f} ms for one (median; the slowest {tested.p99_ms:.1f} ms)."
    )
