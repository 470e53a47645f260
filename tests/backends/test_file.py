"""The `file:` scheme: its URLs, its files, and readers beside a writer that is at work."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer, place_at, redacted
from cln_backup.backends.file.place import path_of
from cln_backup.backends.file.scan import scan
from cln_backup.compaction.compact import compact
from cln_backup.model.change import Change
from cln_backup.model.errors import (
    AlreadyExists,
    BackupError,
    BadUrl,
    Discontinuity,
    NotFound,
    StorageError,
    WriterConflict,
)
from cln_backup.storage import fsio
from tests.histories import (
    append,
    image,
    payment,
    payments,
    rider,
    snapshot_of,
    started_node,
    told,
    told_by,
)
from tests.random_node import RandomNode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.file.scan import Known


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///a/b", "/a/b"),
        ("file:/a/b", "/a/b"),
        ("file:///a b/ä", "/a b/ä"),
        ("file:///a%20b", "/a%20b"),
        ("file:///a;b:c@d&e=f+g", "/a;b:c@d&e=f+g"),
        ("file:///a/../b", "/a/../b"),
    ],
)
def test_path_is_taken_as_it_stands(url: str, path: str) -> None:
    assert path_of(url) == path


@pytest.mark.parametrize(
    "url",
    [
        "file:",
        "file://",
        "file:///",
        "file://relative",
        "file:relative",
        "file://host/path",
        "file:///a?b",
        "file:///a#b",
        "file:///a\nb",
        "file:///a\tb",
        "file:///a\x00b",
        "file:///a/",
        "file:///tmp",
    ],
)
def test_path_that_another_program_would_read_differently_is_refused(url: str) -> None:
    with pytest.raises(BadUrl):
        path_of(url)
    for act in (lambda: create_backend(url, None), lambda: open_reader(url)):
        with pytest.raises(BackupError):
            act()


@pytest.mark.parametrize("url", ["", "/a/b", "sftp://a/b", "FILE:///a"])
def test_unknown_scheme_is_refused(url: str) -> None:
    with pytest.raises(BadUrl):
        place_at(url)


def test_secrets_of_a_url_are_not_repeated() -> None:
    with pytest.raises(BadUrl) as refused:
        place_at("sftp://me:hunter2@host/path?key=hunter3")
    assert "hunter" not in str(refused.value)
    assert redacted("sftp://me:hunter2@host/a?key=hunter3&b=1") == "sftp://me@host/a?key=…&b=…"
    assert redacted("file:///mnt/me:you@home/b") == "file:///mnt/me:you@home/b"


def test_open_says_not_found_and_makes_nothing(tmp_path: Path) -> None:
    for writable in (False, True):
        with pytest.raises(NotFound):
            (open_writer if writable else open_reader)(f"file://{tmp_path}/none")
        with pytest.raises(NotFound):
            (open_writer if writable else open_reader)(f"file://{tmp_path}/no/such/directory")
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".writer")]


def test_create_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "backup"
    path.write_text("something")
    with pytest.raises(AlreadyExists):
        create_backend(f"file://{path}", None)
    assert path.read_text() == "something"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(AlreadyExists):
        create_backend(f"file://{tmp_path}/link", None)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "name", ["new", "repairing", "dropping", "compacting", "unfinished", "dropped-4", "torn"]
)
def test_files_of_others_beside_the_backup_are_left_alone(name: str, tmp_path: Path) -> None:
    other = tmp_path / f"node.bkp.{name}"
    if name != "compacting":
        other.write_text("not yours")
    precious = tmp_path / "precious"
    precious.write_text("not yours")
    (tmp_path / f"node.bkp.{name}-link").symlink_to(precious)
    url = f"file://{tmp_path}/node.bkp"
    base = snapshot_of(started_node(), tmp_path / "base.sqlite3")
    create_backend(url, base)
    append(url, [*payments(4, 7)])
    with open_writer(url) as backend:
        backend.rewind()
    compact(url)
    assert precious.read_text() == "not yours"
    if name != "compacting":
        assert other.read_text() == "not yours"


class _Racing:
    """A snapshot during whose reading another process makes a backup of that name."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._inner = image("of the second " * 30)
        self.size_bytes = self._inner.size_bytes

    def chunks(self) -> Iterator[bytes]:
        create_backend(self._url, Change(4, image("of the first"), None))
        yield from self._inner.chunks()


def test_two_inits_at_once_make_one_backup(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    with pytest.raises(AlreadyExists):
        create_backend(url, Change(9, _Racing(url), None))
    assert told_by(url) == told([Change(4, image("of the first"), None)])
    assert [path.name for path in tmp_path.iterdir()] == ["node.bkp"]


@pytest.fixture
def linked(tmp_path: Path) -> tuple[str, str]:
    """One backup, by its own name and through a link to it, as to another disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    url = f"file://{disk}/node.bkp"
    create_backend(url, None)
    append(url, [*started_node(), *payments(4, 9)])
    (tmp_path / "node.bkp").symlink_to(disk / "node.bkp")
    return url, f"file://{tmp_path}/node.bkp"


def test_two_names_of_one_backup_have_one_writer(linked: tuple[str, str]) -> None:
    for one, other in (linked, linked[::-1]):
        with open_writer(one), pytest.raises(WriterConflict):
            open_writer(other)


def test_compaction_through_a_link_stays_on_the_disk_it_points_to(
    linked: tuple[str, str], tmp_path: Path
) -> None:
    compact(linked[1])
    assert (tmp_path / "node.bkp").is_symlink()
    with open_reader(linked[0]) as backend:
        assert backend.standing.version_count == 2
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "node.bkp"}


def test_backup_that_was_moved_away_is_not_written_to(tmp_path: Path) -> None:
    """The node would continue, and its newest changes would be in a file that is not looked for."""
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(url, started_node())
    with open_writer(url) as backend:
        os.rename(tmp_path / "node.bkp", tmp_path / "elsewhere")
        with pytest.raises(BackupError):
            backend.add_change(payment(4))
    assert told_by(f"file://{tmp_path}/elsewhere") == told(started_node())


_BUSY = """
import sys
from cln_backup.backends import create_backend, open_reader, open_writer
from tests.histories import payment, rider
with open_writer(sys.argv[1]) as backend:
    print("ready", flush=True)
    for version in range(4, 1204):
        backend.add_change(payment(version, "x" * (version * 37 % 900)))
        if version % 7 == 0:
            backend.add_change(rider(version, "PRAGMA user_version = 1;"))
"""


def test_readers_never_find_a_busy_backup_damaged(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(url, started_node())
    writer = subprocess.Popen(
        [sys.executable, "-c", _BUSY, url],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        seen = [3]
        while writer.poll() is None:
            with open_reader(url) as backend:
                versions = [change.version for change in backend.stream_changes()]
                assert versions[-1] == backend.version
                assert sorted(versions) == versions
                seen.append(backend.version)
    assert writer.returncode == 0
    assert sorted(seen) == seen
    with open_reader(url) as backend:
        assert backend.version == 1203


def test_every_rider_that_is_taken_is_read_as_one(tmp_path: Path) -> None:
    """A rider for a writer must not be a second transaction for a reader."""
    for number, pragma in enumerate(
        [
            "PRAGMA foreign_keys = OFF;",
            "pragma foreign_keys=0",
            " \t\r\n PRAGMA foreign_keys(OFF)",
            "\x0bPRAGMA foreign_keys = OFF;",
            "\x0c\x1cPRAGMA foreign_keys = OFF;",
            "\u00a0PRAGMA foreign_keys = OFF;",
            "\u2003PRAGMA foreign_keys = OFF;",
            "PRAGMA foreign_keys = OFF; --" + "x" * 70_000,
            "PRAGMA foreign_keys = OFF; --" + "x" * (1 << 20),
        ]
    ):
        url = f"file://{tmp_path}/{number}"
        create_backend(url, None)
        append(url, started_node())
        try:
            append(url, [rider(3, pragma)])
        except BackupError:
            assert told_by(url) == told(started_node())
            continue
        assert told_by(url) == told([*started_node(), rider(3, pragma)]), repr(pragma[:20])
        append(url, [payment(4)])
        assert told_by(url) == told([*started_node(), rider(3, pragma), payment(4)])


def test_mended_header_of_a_torn_file_allows_no_rewind(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(url, [*started_node(), payment(4)])
    path = tmp_path / "node.bkp"
    path.write_bytes(path.read_bytes() + b"\0\0\0\x20\0\0\0\5\1UPDATE")
    for _ in range(2):
        with open_writer(url) as backend:
            assert backend.version == 4
            assert backend.standing.prev_version == 0


def test_snapshot_is_read_in_pieces(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    large = Change(3, image("0123456789abcdef" * 200_000), None)
    create_backend(url, large)
    with open_reader(url) as backend:
        (change,) = backend.stream_changes()
        assert change.snapshot is not None
        assert max(map(len, change.snapshot.chunks())) <= 1 << 20
        assert sum(map(len, change.snapshot.chunks())) == change.snapshot.size_bytes


def test_wrong_count_in_the_header_is_no_damage(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(url, started_node())
    path = tmp_path / "node.bkp"
    content = bytearray(path.read_bytes())
    content[28:36] = (77).to_bytes(8, "big")
    path.write_bytes(content)
    append(url, [payment(4)])
    with open_reader(url) as backend:
        assert backend.standing.version_count == 6
    assert path.read_bytes()[28:36] == (6).to_bytes(8, "big")


_DIES_WHILE_IT_NOTES_ITSELF = """
import os, signal, sys
from cln_backup.storage import fsio
from cln_backup.backends import create_backend, open_reader, open_writer
write_at = fsio.write_at
def dying(fd, buffers, offset, *, op):
    if op == "write writer lock":
        os.kill(os.getpid(), signal.SIGKILL)
    return write_at(fd, buffers, offset, op=op)
fsio.write_at = dying
open_writer(sys.argv[1])
"""


def test_claim_outlives_a_writer_that_is_killed_while_it_notes_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    monkeypatch.setattr(sys, "argv", ["a-program-with-a-long-name"])
    with open_writer(url) as backend:
        backend.claim("02")
        backend.add_change(started_node()[0])
    killed = subprocess.run([sys.executable, "-c", _DIES_WHILE_IT_NOTES_ITSELF, url], check=False)
    assert killed.returncode < 0
    with open_writer(url) as backend, pytest.raises(Discontinuity):
        backend.claim("03")


def test_lock_is_given_back_when_the_writer_cannot_note_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    write_at = fsio.write_at

    def failing(fd: int, buffers: list[bytes], offset: int, *, op: str) -> int:
        if op == "write writer lock":
            raise StorageError("the disk is full")
        return write_at(fd, buffers, offset, op=op)

    with monkeypatch.context() as patch:
        patch.setattr(fsio, "write_at", failing)
        with pytest.raises(StorageError):
            open_writer(url)
    append(url, started_node())


@pytest.mark.parametrize("seed", range(2))
def test_scan_that_continues_finds_what_a_whole_one_finds(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "node.bkp"
    url = f"file://{path}"
    create_backend(url, None)
    chance = random.Random(seed)
    node = RandomNode(url, chance, compacts=False)
    known: list[Known | None] = [None]
    for _ in range(50):
        node.step()
        fd = os.open(path, os.O_RDONLY)
        whole = scan(fd, str(path))
        for place in chance.sample(known, min(4, len(known))):
            assert scan(fd, str(path), place) == whole
        os.close(fd)
        known.append(whole.known)
    node.close()
