"""Everything that was recorded of real nodes, through each kind of backup and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.compaction.compact import compact
from cln_backup.model.change import Change, Kind
from cln_backup.model.continuity import Decision, Facts, decide
from cln_backup.node.settings import read_settings
from cln_backup.operations.history import log, status
from cln_backup.operations.initialize import initialize
from cln_backup.operations.restore import restore
from cln_backup.operations.verify import verify
from tests import captured
from tests.disasters.places import KINDS, kept_aside, url_in
from tests.histories import append, assert_same_database, told, told_by
from tests.soak import kinds_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cln_backup.backends.contract import Writer

SMALL = captured.COMMITTED / "small"
MIGRATIONS = (
    "channel_htlcs-pre-pagination",
    "dangling-peer",
    "invoices_pre_waitindex",
    "l1-before-moves-in-db",
    "last_tx_closed",
    "oldstyle-scids",
    "upgrade_inflight",
    "v0.12.1-forward",
)


def _restored(url: str, target: Path) -> Path:
    with open_reader(url) as backend:
        restored = restore(backend, str(target))
        assert restored.version == backend.version
        assert restored.size_bytes == target.stat().st_size
        backend.check()
    return target


def _times_smaller(url: str, history: Sequence[Change]) -> float:
    """How many bytes of SQL there are for a byte of the backup."""
    sql_bytes = sum(
        len(text.encode("utf-8", "surrogateescape"))
        for change in history
        for text in change.transaction or ()
    )
    with open_reader(url) as backend:
        return sql_bytes / backend.size_bytes


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(kind: str, memory_path: Path) -> str:
    """An unused place."""
    place = memory_path / "backup"
    place.mkdir(mode=0o700)
    return url_in(place, kind)


@pytest.fixture(params=captured.SMALL)
def node(
    request: pytest.FixtureRequest, url: str, memory_path: Path
) -> tuple[str, list[Change], Path]:
    """A backup of a recorded node, its history, and the node's own database."""
    history = list(captured.changes(SMALL / f"{request.param}.jsonl.xz"))
    create_backend(url, None)
    append(url, history)
    database = captured.unpacked(
        SMALL / f"{request.param}.sqlite3.xz", memory_path / "node.sqlite3"
    )
    return url, history, database


def test_recorded_node_comes_back(
    node: tuple[str, list[Change], Path],
    kind: str,
    memory_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    url, history, database = node
    least = 10 if "router" in request.node.name else 6
    assert kind == "file" or _times_smaller(url, history) >= least
    assert told_by(url) == told(history)
    assert_same_database(_restored(url, memory_path / "restored.sqlite3"), database)
    with open_reader(url) as backend:
        verified = verify(backend, replayed=True)
        assert (verified.version, verified.version_count) == (history[-1].version, len(history))
        assert status(backend).version == history[-1].version
        lines = list(log(backend))
    assert [(line.version, line.kind) for line in lines] == [
        (change.version, change.kind.value) for change in history
    ]
    assert [line.statements for line in lines] == [
        len(change.transaction or ()) for change in history
    ]
    assert {"vars", "channels", "utxoset"} <= {name for line in lines for name in line.tables}


def test_recorded_node_is_compacted_on_its_way(url: str, memory_path: Path) -> None:
    """In the middle of the first migration, right after a rider, at the end, and twice."""
    history = list(captured.changes(SMALL / "router.jsonl.xz"))
    create_backend(url, None)
    first_riders = [n for n, change in enumerate(history) if change.kind is Kind.RIDER]
    assert first_riders[0] == 1
    cuts = [*range(2, 8), 100, 101, len(history) - 1, len(history)]
    done = 0
    for cut in cuts:
        append(url, history[done:cut])
        done = cut
        statistics = compact(url)
        assert statistics["after"]["version_count"] <= 3
    database = captured.unpacked(SMALL / "router.sqlite3.xz", memory_path / "node.sqlite3")
    assert_same_database(_restored(url, memory_path / "restored.sqlite3"), database)


def test_recorded_node_that_was_killed_three_times(kind: str, url: str, memory_path: Path) -> None:
    """Each process decides at its first call, as the plugin does."""
    create_backend(url, None)
    decisions = []
    backend: Writer | None = None
    for line in captured.lines(captured.CRASH.with_suffix(".jsonl.xz")):
        if isinstance(line, str):
            if line == "start":
                if backend is not None:
                    backend.close()
                backend = None
            continue
        if backend is None:
            backend = open_writer(url)
            facts = Facts(line.version, line.kind is Kind.RIDER, backend.standing.head, loss=None)
            decisions.append(decide(facts))
            if decisions[-1] is Decision.DROP_HEAD:
                backend.rewind()
        backend.add_change(line)
    assert backend is not None
    backend.close()
    assert decisions == [Decision.APPEND] + [Decision.DROP_HEAD] * 3
    real = captured.unpacked(
        captured.CRASH.with_suffix(".sqlite3.xz"), memory_path / "node.sqlite3"
    )
    assert_same_database(_restored(url, memory_path / "restored.sqlite3"), real)
    assert len(kept_aside(memory_path / "backup", kind)) == 3


def _taken_over(
    captures: Path, name: str, url: str, memory_path: Path
) -> tuple[Sequence[Change], Path]:
    """A backup of the old release's database; what the new one does, and what it comes to."""
    place = captures / "migrations" / name
    directory = memory_path / "regtest"
    directory.mkdir()
    captured.unpacked(place / "before.sqlite3.xz", directory / "lightningd.sqlite3")
    initialize(url, str(directory))
    return list(captured.changes(place / "writes.jsonl.xz")), place / "after.sqlite3.xz"


@pytest.mark.parametrize("name", MIGRATIONS)
def test_old_node_is_taken_over_and_migrates(
    name: str, large_captures: Path, url: str, memory_path: Path
) -> None:
    """`init` on the old release's database; then the new release starts."""
    history, packed_after = _taken_over(large_captures, name, url, memory_path)
    append(url, history)
    after = captured.unpacked(packed_after, memory_path / "after.sqlite3")
    assert_same_database(_restored(url, memory_path / "restored.sqlite3"), after)
    compact(url)
    assert_same_database(_restored(url, memory_path / "again.sqlite3"), after)


@pytest.mark.parametrize("name", MIGRATIONS)
def test_migration_is_compacted_after_each_change(
    name: str, large_captures: Path, url: str, memory_path: Path
) -> None:
    history, packed_after = _taken_over(large_captures, name, url, memory_path)
    for change in history:
        append(url, [change])
        compact(url)
    after = captured.unpacked(packed_after, memory_path / "after.sqlite3")
    assert_same_database(_restored(url, memory_path / "restored.sqlite3"), after)


def test_every_migration_that_was_recorded_is_tried(large_captures: Path) -> None:
    found = {path.name for path in (large_captures / "migrations").iterdir()}
    assert found == set(MIGRATIONS)


@pytest.mark.timeout(300)  # 10 s, if nothing else runs
@pytest.mark.parametrize("kind", kinds_of("dir-encrypted"))
def test_large_recording_comes_back(
    kind: str, large_captures: Path, url: str, memory_path: Path
) -> None:
    create_backend(url, None)
    place = large_captures / "payments600"
    history = list(captured.changes(place / "payee.jsonl.xz"))
    append(url, history)
    assert kind == "file" or _times_smaller(url, history) >= 6
    real = captured.unpacked(place / "payee.sqlite3.xz", memory_path / "node.sqlite3")
    assert_same_database(_restored(url, memory_path / "restored.sqlite3"), real)
    with open_reader(url) as backend:
        before = backend.size_bytes
    statistics = compact(url)
    assert statistics["before"]["backupsize"] == before
    # A directory keeps the segment in which its history continues.
    assert statistics["after"]["backupsize"] < before / (10 if kind == "file" else 4)
    assert_same_database(_restored(url, memory_path / "again.sqlite3"), real)


def test_lock_file_of_a_node_that_was_taken_over(url: str, memory_path: Path) -> None:
    directory = memory_path / "regtest"
    directory.mkdir()
    captured.unpacked(SMALL / "payer.sqlite3.xz", directory / "lightningd.sqlite3")
    initialize(url, str(directory))
    assert read_settings(str(directory)).backend_url == url
    assert_same_database(
        _restored(url, memory_path / "restored.sqlite3"), directory / "lightningd.sqlite3"
    )
