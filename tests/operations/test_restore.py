from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader
from cln_backup.compaction.compact import compact
from cln_backup.model.change import Change
from cln_backup.model.errors import (
    AlreadyExists,
    Interrupted,
    NotFound,
    ReplayFailed,
)
from cln_backup.operations.restore import Restored, restore
from cln_backup.operations.verify import verify
from cln_backup.replay.kept import KeptReplica
from tests.histories import (
    OFF,
    SnapshotBytes,
    append,
    assert_same_database,
    build_database,
    bump,
    database,
    first,
    image,
    payment,
    payments,
    rider,
    snapshot_of,
    started_node,
    transaction,
)
from tests.seed_file import SeedNode

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "hunter2preimage"  # noqa: S105


@pytest.fixture
def url(tmp_path: Path) -> str:
    place = tmp_path / "backups"
    place.mkdir()
    url = f"file://{place}/node.bkp"
    create_backend(url, None)
    return url


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory to restore to."""
    place = tmp_path / "place"
    place.mkdir()
    return place


def _restore(url: str, destination: object) -> Restored:
    with open_reader(url) as backend:
        return restore(backend, str(destination))


HISTORY = [*started_node(), *payments(4, 9)]


def test_to_a_file(url: str, place: Path, tmp_path: Path) -> None:
    append(url, HISTORY)
    restored = _restore(url, place / "any.name")
    assert restored.path == str(place / "any.name")
    assert (restored.version, restored.version_count) == (8, len(HISTORY))
    assert restored.foreign_key_faults == 0
    assert_same_database(restored.path, build_database(tmp_path / "expected", HISTORY))
    assert [path.name for path in place.iterdir()] == ["any.name"]
    assert (place / "any.name").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("slash", ["", "/"])
def test_to_a_directory(url: str, place: Path, slash: str) -> None:
    append(url, HISTORY)
    assert _restore(url, f"{place}{slash}").path == str(place / "lightningd.sqlite3")


def test_to_a_relative_path(url: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(url, HISTORY)
    monkeypatch.chdir(place)
    assert _restore(url, "here.sqlite3").path == str(place / "here.sqlite3")
    assert _restore(url, ".").path == str(place / "lightningd.sqlite3")


@pytest.mark.parametrize("suffix", ["", "-wal", "-journal", "-shm"])
def test_nothing_is_ever_overwritten(url: str, place: Path, suffix: str) -> None:
    """SQLite would play a journal of another database into the restored one."""
    append(url, HISTORY)
    mine = place / f"lightningd.sqlite3{suffix}"
    mine.write_text("mine")
    for destination in (place, place / "lightningd.sqlite3"):
        with pytest.raises(AlreadyExists):
            _restore(url, destination)
    assert mine.read_text() == "mine"
    assert list(place.iterdir()) == [mine]


@pytest.mark.parametrize("suffix", ["", "-wal", "-journal"])
def test_link_that_leads_nowhere_is_not_followed(url: str, place: Path, suffix: str) -> None:
    append(url, HISTORY)
    link = place / f"lightningd.sqlite3{suffix}"
    link.symlink_to(place / "nowhere")
    with pytest.raises(AlreadyExists):
        _restore(url, place)
    assert list(place.iterdir()) == [link]


@pytest.mark.parametrize("missing", ["no/such/file", "no/", "no/such/"])
def test_missing_directory_is_not_made(url: str, place: Path, missing: str) -> None:
    append(url, HISTORY)
    with pytest.raises(NotFound):
        _restore(url, f"{place}/{missing}")
    assert list(place.iterdir()) == []


def test_empty_backup_is_no_database(url: str, place: Path) -> None:
    with pytest.raises(NotFound, match="empty"):
        _restore(url, place)
    assert list(place.iterdir()) == []


def test_node_that_was_started_meanwhile_keeps_its_database(url: str, place: Path) -> None:
    append(url, HISTORY)

    def start(change: Change) -> None:
        if change.version == 8:
            (place / "lightningd.sqlite3").write_text("a node's")

    with open_reader(url) as backend, pytest.raises(AlreadyExists):
        restore(backend, str(place), start)
    assert (place / "lightningd.sqlite3").read_text() == "a node's"
    assert [path.name for path in place.iterdir()] == ["lightningd.sqlite3"]


def test_progress_is_told_of_each_change(url: str, place: Path) -> None:
    append(url, HISTORY)
    seen: list[int] = []
    with open_reader(url) as backend:
        restore(backend, str(place), lambda change: seen.append(change.version))
    assert seen == [change.version for change in HISTORY]


BROKEN = {
    "no SQL": transaction(9, f"HEY {SECRET} '{SECRET}'"),
    "no statement at all": transaction(9, f"{SECRET}"),
    "number first": transaction(9, f"7{SECRET}"),
    "no such table": transaction(9, f"INSERT INTO nowhere VALUES ('{SECRET}')"),
    "no such column": transaction(9, f"UPDATE payments SET {SECRET} = '{SECRET}'"),
    "double quoted": transaction(9, f'INSERT INTO peers VALUES (1, "{SECRET}", 3, 4, 5)'),
    "unique": transaction(9, f"INSERT INTO payments VALUES (8, '{SECRET}')"),
    "foreign key": transaction(9, f"INSERT INTO channels VALUES (length('{SECRET}'), 77)"),
    "unterminated": transaction(9, f"INSERT INTO payments VALUES (99, '{SECRET}"),
    "stray bytes": transaction(9, f"INSERT INTO payments VALUES (99, {SECRET}\udcff)"),
    "raised": transaction(
        9,
        f"CREATE TRIGGER t BEFORE INSERT ON payments BEGIN SELECT RAISE(ABORT, '{SECRET}'); END",
        "INSERT INTO payments VALUES (99, 'x')",
    ),
    "nested": transaction(9, "BEGIN"),
    "commits itself": transaction(9, "COMMIT", f"INSERT INTO payments VALUES (99, '{SECRET}')"),
    "rolls back": transaction(9, "ROLLBACK"),
    "sets the version itself": transaction(9, "UPDATE vars SET intval = 77"),
    "another node's": transaction(9, "UPDATE vars SET intval = 3 WHERE name = 'data_version'"),
    "no version row": transaction(9, "DELETE FROM vars WHERE name = 'data_version'"),
    "two rows": transaction(
        9,
        "CREATE TABLE v AS SELECT * FROM vars",
        "DROP TABLE vars",
        "ALTER TABLE v RENAME TO vars",
        "INSERT INTO vars SELECT * FROM vars",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_failure_leaves_nothing_and_tells_no_secret(name: str, url: str, place: Path) -> None:
    append(url, [*HISTORY, BROKEN[name], payment(10)])
    before = Path(url.removeprefix("file://")).read_bytes()
    with pytest.raises(ReplayFailed) as failed:
        _restore(url, place)
    assert SECRET.lower() not in str(failed.value).lower()
    assert list(place.iterdir()) == []
    assert Path(url.removeprefix("file://")).read_bytes() == before


@pytest.mark.parametrize("name", BROKEN)
def test_backup_is_restored_from_the_snapshot_that_healed_it(
    name: str, url: str, place: Path
) -> None:
    healed = snapshot_of([*HISTORY, *payments(9, 12)], place.parent / "healthy")
    append(url, [*HISTORY, BROKEN[name], payment(10), healed, payment(12)])
    _restore(url, place)
    expected = build_database(place.parent / "expected", [healed, payment(12)])
    assert_same_database(place / "lightningd.sqlite3", expected)
    with open_reader(url) as reader, pytest.raises(ReplayFailed):
        restore(reader, str(place / "earlier"), to=10)
    replica = KeptReplica.open(str(place / "kept"))
    with open_reader(url) as reader:
        assert replica.catch_up(reader)
        assert replica.version == 12
        assert replica.check() == 0
    replica.close()


@pytest.mark.parametrize("name", BROKEN)
def test_verify_says_up_to_where_it_is_good(name: str, url: str) -> None:
    append(url, [*HISTORY, BROKEN[name], payment(10)])
    with open_reader(url) as backend, pytest.raises(ReplayFailed) as failed:
        verify(backend, replayed=True)
    assert failed.value.good_version in (8, 9)
    assert SECRET.lower() not in str(failed.value).lower()
    names = {path.name for path in Path(url.removeprefix("file://")).parent.iterdir()}
    assert names == {"node.bkp", "node.bkp.writer"}


@pytest.mark.parametrize("name", BROKEN)
def test_compaction_of_what_cannot_be_replayed_changes_nothing(name: str, url: str) -> None:
    append(url, [*HISTORY, BROKEN[name], payment(10)])
    path = Path(url.removeprefix("file://"))
    before = path.read_bytes()
    with pytest.raises(ReplayFailed):
        compact(url)
    assert path.read_bytes() == before
    assert {one.name for one in path.parent.iterdir()} == {"node.bkp", "node.bkp.writer"}


def test_snapshot_of_another_version_than_it_says(url: str, place: Path, tmp_path: Path) -> None:
    base = snapshot_of(started_node(), tmp_path / "base.sqlite3")
    append(url, [Change(7, base.snapshot, None)])
    with pytest.raises(ReplayFailed):
        _restore(url, place)
    append(url, [payment(8)])
    path = Path(url.removeprefix("file://"))
    before = path.read_bytes()
    with pytest.raises(ReplayFailed):
        compact(url)
    assert path.read_bytes() == before


def test_snapshot_that_is_no_database(url: str, place: Path) -> None:
    append(url, [Change(7, image("but nothing more " * 100), None)])
    with pytest.raises(ReplayFailed):
        _restore(url, place)
    assert list(place.iterdir()) == []


def test_snapshot_that_is_damaged_inside(url: str, place: Path, tmp_path: Path) -> None:
    base = snapshot_of([*started_node(), *payments(4, 200)], tmp_path / "base.sqlite3")
    assert isinstance(base.snapshot, SnapshotBytes)
    content = bytearray(base.snapshot.content)
    half = len(content) // 2
    content[half : half + 4096] = b"\xff" * 4096
    append(url, [Change(base.version, SnapshotBytes(bytes(content)), None)])
    with pytest.raises(ReplayFailed):
        _restore(url, place)
    assert list(place.iterdir()) == []


_NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
HOSTILE = {
    "attach": ["ATTACH '{victim}' AS victim", "DELETE FROM victim.payments"],
    "attach a new one": ["ATTACH '{place}/new.sqlite3' AS new", "CREATE TABLE new.t (x)"],
    "vacuum into": ["VACUUM INTO '{place}/copy.sqlite3'"],
    "backup by extension": ["SELECT load_extension('{victim}')"],
    "write a file": ["SELECT writefile('{place}/written', 'x')"],
    "read a file": ["INSERT INTO payments VALUES (99, CAST(readfile('{victim}') AS TEXT))"],
    "directory of temporary files": ["PRAGMA temp_store_directory = '{place}'"],
    "temporary table that spills": [
        "PRAGMA temp_store_directory = '{place}'",
        f"CREATE TEMP TABLE t AS {_NUMBERS} SELECT randomblob(100) FROM n",
    ],
    "csv": ["CREATE VIRTUAL TABLE t USING csv(filename='{victim}')"],
    "files of another journal mode": ["PRAGMA journal_mode = WAL"],
    "a journal that stays": ["PRAGMA journal_mode = PERSIST"],
    "no exclusive lock": ["PRAGMA locking_mode = NORMAL", "PRAGMA journal_mode = WAL"],
    "the schema itself": [
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_schema SET sql = 'CREATE TABLE peers (x)' WHERE name = 'peers'",
    ],
    "no more memory": ["PRAGMA hard_heap_limit = 1000"],
}


_TWO_RESTORES = """
import contextlib, sys
from cln_backup.backends import create_backend, open_reader
from cln_backup.model.errors import BackupError
from cln_backup.operations.restore import restore
with open_reader(sys.argv[1]) as backend, contextlib.suppress(BackupError):
    restore(backend, sys.argv[2])
with open_reader(sys.argv[3]) as backend:
    restore(backend, sys.argv[4])
"""


def _hostile() -> Iterator[tuple[str, bool]]:
    for name, texts in HOSTILE.items():
        yield name, False
        if texts[0].startswith("PRAGMA"):
            yield name, True


@pytest.mark.parametrize(("name", "as_rider"), list(_hostile()))
def test_hostile_backup_touches_no_other_file(
    name: str, as_rider: bool, url: str, place: Path, tmp_path: Path
) -> None:
    """A backup may come from a place that others write to; it must stay within its database."""
    victim = build_database(tmp_path / "victim.sqlite3", HISTORY)
    content = victim.read_bytes()
    texts = [text.format(victim=victim, place=place) for text in HOSTILE[name]]
    if as_rider:
        pragmas = [text for text in texts if text.startswith("PRAGMA")]
        append(url, [*HISTORY, rider(8, *pragmas)])
        texts = texts[len(pragmas) :]
    append(url, [*([] if as_rider else HISTORY), transaction(9, *texts), payment(10)])
    target = place / "restored" / "lightningd.sqlite3"
    target.parent.mkdir()
    other = f"file://{tmp_path}/other.bkp"
    create_backend(other, None)
    append(other, HISTORY)
    restored = tmp_path / "other.sqlite3"
    # The effects of one backup must not reach the next restore of its process either.
    subprocess.run(
        [sys.executable, "-c", _TWO_RESTORES, url, str(target), other, str(restored)], check=True
    )
    assert list(target.parent.iterdir()) in ([], [target])
    assert victim.read_bytes() == content
    assert list(place.iterdir()) == [target.parent]
    assert_same_database(restored, victim)


def test_hostile_table_name_is_no_way_out(url: str, place: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    append(url, [first(), transaction(2, f"CREATE TABLE \"'{outside}'; ATTACH 'x'\" (x)")])
    _restore(url, place)
    assert not outside.exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff",
        b"caf\xe9",
        b"\xed\xa0\x80",
        b"it's \xff'",
        b"\xc3\x28 \xf0\x90",
        bytes(range(1, 256)),
    ],
    ids=repr,
)
def test_text_that_is_no_utf8_comes_back_byte_for_byte(raw: bytes, url: str, place: Path) -> None:
    """A peer's alias, an error message, a label: lightningd stores what it is given."""
    text = raw.decode("utf-8", "surrogateescape").replace("'", "''")
    append(
        url,
        [
            first(),
            transaction(
                2,
                f"INSERT INTO payments VALUES (1, '{text}'), (2, 'plain')",
                f"INSERT INTO payments SELECT 3, description || '{text}' FROM payments "
                f"WHERE description = '{text}'",
            ),
        ],
    )
    restored = _restore(url, place)
    with database(Path(restored.path)) as connection:
        connection.text_factory = bytes
        rows = connection.execute("SELECT version, typeof(description), description FROM payments")
        assert rows.fetchall() == [
            (1, b"text", raw),
            (2, b"text", b"plain"),
            (3, b"text", raw + raw),
        ]
    compact(url)
    append(url, [transaction(3, f"DELETE FROM payments WHERE description = '{text}'")])
    again = _restore(url, place / "again.sqlite3")
    with database(Path(again.path)) as connection:
        assert connection.execute("SELECT count(*) FROM payments").fetchall() == [(2,)]


def test_faults_that_the_node_itself_has_are_counted_not_refused(
    url: str, place: Path, tmp_path: Path
) -> None:
    history = [
        first(),
        rider(1, OFF),
        transaction(2, "INSERT INTO channels VALUES (1, 77), (2, 78)"),
    ]
    append(url, history)
    restored = _restore(url, place)
    assert restored.foreign_key_faults == 2
    assert_same_database(restored.path, build_database(tmp_path / "expected", history))


def test_foreign_keys_are_enforced_again_after_a_snapshot(
    url: str, place: Path, tmp_path: Path
) -> None:
    base = snapshot_of(
        [*started_node(), transaction(4, "INSERT INTO peers (id) VALUES (1)")],
        tmp_path / "base.sqlite3",
    )
    append(url, [*started_node(), rider(3, OFF), base])
    append(url, [transaction(5, "INSERT INTO channels VALUES (1, 77)")])
    with pytest.raises(ReplayFailed):
        _restore(url, place)


def test_database_without_a_version_row(url: str, place: Path, tmp_path: Path) -> None:
    """As old releases had it; its snapshot is version 0."""
    path = tmp_path / "old.sqlite3"
    with database(path) as connection:
        connection.execute("CREATE TABLE vars (name VARCHAR(32), val VARCHAR(255))")
        connection.execute("INSERT INTO vars VALUES ('next_pay_index', '1')")
    append(url, [Change(0, SnapshotBytes(path.read_bytes()), None)])
    restored = _restore(url, place)
    assert restored.version == 0
    assert_same_database(restored.path, path)


@pytest.fixture(scope="module")
def long_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A backup whose restore takes long enough to be stopped; nothing writes to it."""
    path = tmp_path_factory.mktemp("long") / "node.bkp"
    SeedNode(path, [first(), *payments(2, 10_000)])
    return f"file://{path}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("when", ["at once", "later"])
def test_interrupted_restore_leaves_nothing(
    number: signal.Signals, when: str, long_url: str, memory_path: Path
) -> None:
    url, place = long_url, memory_path / "place"
    place.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "cln_backup.cli.commands", "restore", url, str(place)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        size = 1 if when == "at once" else 100_000
        while not any(path.stat().st_size >= size for path in place.iterdir()):
            assert process.poll() is None, "it was done before it could be stopped"
        process.send_signal(number)
        _, complained = process.communicate()
    assert process.returncode == Interrupted.exit_code
    assert complained.startswith("Error: ")
    assert list(place.iterdir()) == []


def test_replay_of_a_long_history_takes_little_memory(url: str, place: Path) -> None:
    """Sixty megabytes of history, of which one change at a time is held."""
    text = "x" * 300_000
    append(url, [first(), *(transaction(n, f"UPDATE payments SET description = '{text}'")
                            for n in range(2, 202))])  # fmt: skip
    code = (
        "import resource, sys\n"
        "from cln_backup.backends import open_reader\n"
        "from cln_backup.operations.restore import restore\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with open_reader(sys.argv[1]) as backend: restore(backend, sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    grown_kib = subprocess.run(
        [sys.executable, "-c", code, url, str(place)], check=True, capture_output=True
    )
    assert int(grown_kib.stdout) < 20_000


def test_target_that_is_a_socket_or_a_pipe_is_left_alone(url: str, place: Path) -> None:
    append(url, HISTORY)
    os.mkfifo(place / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(place / "socket"))
    for name in ("pipe", "socket"):
        with pytest.raises(AlreadyExists):
            _restore(url, place / name)
    listening.close()


def test_bump_with_a_trigger_on_it(url: str, place: Path) -> None:
    """A trigger makes changes of its own; the last statement's own rows are what counts."""
    append(
        url,
        [
            first(),
            transaction(
                2,
                "CREATE TRIGGER t AFTER UPDATE ON vars BEGIN "
                "INSERT INTO payments VALUES (NULL, 'seen'); END",
            ),
            Change(3, None, ["DELETE FROM peers", bump(3)]),
        ],
    )
    assert _restore(url, place).version == 3
