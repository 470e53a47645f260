"""A segment's file, and whether its path still leads to it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends.dir.blocks import BlockFile
from cln_backup.storage import statx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On the disk, past whose cache a segment is written."""
    return tmp_path_factory.mktemp("test")


@pytest.fixture(autouse=True, params=["statx", "stat"])
def call(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's call that looks at the path; not every system has the first."""
    if request.param == "stat":
        monkeypatch.setattr(statx, "function", lambda: None)
    else:
        assert (statx.function() is not None) == (sys.platform == "linux")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a file of zeros, in a directory that a link leads to."""
    (tmp_path / "disk" / "backup").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk")
    path = tmp_path / "link" / "backup" / "log"
    path.write_bytes(bytes(1 << 16))
    return path


@pytest.fixture
def file(path: Path) -> Iterator[BlockFile]:
    """The file, found in its place once before."""
    file = BlockFile(str(path), op="open")
    assert file.is_in_place()
    yield file
    file.close()


def test_file_that_is_written_to_stays_in_place(file: BlockFile, path: Path) -> None:
    for number in range(5):
        file.append(b"x" * 3_000, op="append")
        (path.parent / f"other-{number}").touch()
        assert file.is_in_place()
    assert path.read_bytes()[: file.end_bytes] == b"x" * 15_000


def test_file_that_was_removed_is_not_in_place(file: BlockFile, path: Path) -> None:
    path.unlink()
    assert not file.is_in_place()


def test_file_that_was_replaced_is_not_in_place(file: BlockFile, path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)
    assert not file.is_in_place()
    assert not file.is_in_place()


@pytest.mark.parametrize("moved", ["link/backup", "disk", "link"])
def test_file_whose_directory_was_moved_is_not_in_place(
    file: BlockFile, tmp_path: Path, moved: str
) -> None:
    (tmp_path / moved).rename(tmp_path / "moved")
    assert not file.is_in_place()


def test_file_whose_path_leads_elsewhere_now_is_not_in_place(
    file: BlockFile, path: Path, tmp_path: Path
) -> None:
    (tmp_path / "other" / "backup").mkdir(parents=True)
    (tmp_path / "other" / "backup" / "log").write_bytes(path.read_bytes())
    (tmp_path / "new").symlink_to("other")
    (tmp_path / "new").rename(tmp_path / "link")
    assert not file.is_in_place()


def test_file_that_came_back_is_in_place_again(file: BlockFile, path: Path) -> None:
    path.rename(path.with_name("moved"))
    assert not file.is_in_place()
    path.with_name("moved").rename(path)
    assert file.is_in_place()
