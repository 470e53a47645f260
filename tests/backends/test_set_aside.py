"""Changes set aside: the only copy of a change is never lost."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_writer, place_at
from cln_backup.model.change import Change
from cln_backup.operations.history import log
from tests.histories import (
    append,
    first,
    image,
    long_text,
    payment,
    payments,
    rider,
    started_node,
    told,
    told_by,
    transaction,
)
from tests.seed_file import SeedFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cln_backup.backends.events import Event


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    return url


def _kept(url: str) -> list[Path]:
    path = Path(url.removeprefix("file://"))
    return sorted(path.parent.glob("*.dropped-*"))


def _drop_head(url: str) -> list[str]:
    events: list[Event] = []
    with place_at(url).open_writer(on_event=events.append) as backend:
        backend.rewind()
    return [event.text for event in events]


DROPPED = {
    "transaction": payment(4, "never committed"),
    "transaction of many sectors": payment(4, long_text(4, 9_000)),
    "rider": rider(3),
    "snapshot": Change(7, image("a database"), None),
    "not UTF-8": transaction(4, "INSERT INTO payments VALUES (4, '\udcff\udc80')"),
}


@pytest.mark.parametrize("name", DROPPED)
def test_dropped_head_can_be_read_as_a_backup_of_its_own(name: str, url: str) -> None:
    append(url, [*started_node(), DROPPED[name]])
    notices = _drop_head(url)
    (path,) = _kept(url)
    assert path.name == f"node.bkp.dropped-{DROPPED[name].version}"
    assert any(str(path) in notice for notice in notices)
    assert told_by(f"file://{path}") == told([DROPPED[name]])
    assert told_by(url) == told(started_node())
    events: list[Event] = []
    with place_at(f"file://{path}").open_reader(on_event=events.append) as backend:
        assert events == []
        assert [line.version for line in log(backend)] == [DROPPED[name].version]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_dropped_head_is_a_file_of_the_seed(url: str, tmp_path: Path) -> None:
    append(url, [*started_node(), DROPPED["transaction"]])
    _drop_head(url)
    seed = SeedFile.create(tmp_path / "alone")
    seed.append(DROPPED["transaction"])
    (path,) = _kept(url)
    assert path.read_bytes() == seed.path.read_bytes()


def test_two_crashes_in_a_row_at_one_version_keep_both(url: str) -> None:
    append(url, started_node())
    stale: Sequence[Change] = [payment(4, text) for text in ("once", "twice", "three times")]
    for change in stale:
        append(url, [change])
        _drop_head(url)
    append(url, [payment(4)])
    kept = _kept(url)
    assert [path.name for path in kept] == [
        "node.bkp.dropped-4",
        "node.bkp.dropped-4-2",
        "node.bkp.dropped-4-3",
    ]
    assert [told_by(f"file://{path}") for path in kept] == [told([change]) for change in stale]
    assert told_by(url) == told([*started_node(), payment(4)])


def test_crashes_at_several_versions_keep_all(url: str) -> None:
    append(url, started_node())
    for version in range(4, 9):
        append(url, [payment(version, "never committed")])
        _drop_head(url)
        append(url, [payment(version)])
    assert [path.name for path in _kept(url)] == [f"node.bkp.dropped-{n}" for n in range(4, 9)]
    for path in _kept(url):
        version = int(path.name.rpartition("-")[2])
        assert told_by(f"file://{path}") == told([payment(version, "never committed")])


def test_first_change_of_all_is_set_aside(url: str) -> None:
    append(url, [first()])
    _drop_head(url)
    (path,) = _kept(url)
    assert told_by(f"file://{path}") == told([first()])
    assert told_by(url) == []
    append(url, started_node())
    assert told_by(url) == told(started_node())


def test_foreign_file_of_that_name_is_never_overwritten(url: str, tmp_path: Path) -> None:
    mine = tmp_path / "node.bkp.dropped-4"
    mine.write_text("not yours")
    append(url, [*started_node(), payment(4)])
    _drop_head(url)
    assert mine.read_text() == "not yours"
    assert told_by(f"file://{tmp_path}/node.bkp.dropped-4-2") == told([payment(4)])


@pytest.mark.parametrize("target", ["missing", "elsewhere"])
def test_link_of_that_name_is_never_followed(target: str, url: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("not yours")
    (tmp_path / "node.bkp.dropped-4").symlink_to(tmp_path / target)
    append(url, [*started_node(), payment(4)])
    _drop_head(url)
    assert elsewhere.read_text() == "not yours"
    assert not (tmp_path / "missing").exists()
    assert told_by(f"file://{tmp_path}/node.bkp.dropped-4-2") == told([payment(4)])


def test_no_hard_links_on_this_file_system(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a FAT disk or some network shares."""
    link = os.link

    def refused(source: str, target: str) -> None:
        if os.path.lexists(target):
            link(source, target)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    append(url, started_node())
    for text in ("once", "twice"):
        append(url, [payment(4, text)])
        _drop_head(url)
    assert [told_by(f"file://{path}") for path in _kept(url)] == [
        told([payment(4, "once")]),
        told([payment(4, "twice")]),
    ]


def test_nothing_else_is_left(url: str, tmp_path: Path) -> None:
    append(url, [*started_node(), payment(4)])
    _drop_head(url)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"node.bkp", "node.bkp.writer", "node.bkp.dropped-4"}


def test_head_that_cannot_be_set_aside_is_not_dropped(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cln_backup.model.errors import StorageError
    from cln_backup.storage import fsio

    append(url, [*started_node(), payment(4)])

    def failing(_path: str, _name: str, *, op: str) -> str:
        raise StorageError(f"Cannot {op}")

    with monkeypatch.context() as patch, open_writer(url) as backend:
        patch.setattr(fsio, "keep", failing)
        with pytest.raises(StorageError):
            backend.rewind()
    assert told_by(url) == told([*started_node(), payment(4)])
    assert {path.name for path in tmp_path.iterdir()} == {"node.bkp", "node.bkp.writer"}
    _drop_head(url)
    assert told_by(url) == told(started_node())


def test_torn_end_is_kept_as_it_is(url: str, tmp_path: Path) -> None:
    append(url, [*started_node(), *payments(4, 6)])
    path = tmp_path / "node.bkp"
    whole = path.read_bytes()
    for number, torn in enumerate([b"torn", b"\0\0\1\0\0\0\0\6\1UPDATE va", b"torn again"], 1):
        path.write_bytes(whole + torn)
        events: list[Event] = []
        with place_at(url).open_writer(on_event=events.append):
            assert any("kept as" in event.text for event in events)
        kept = tmp_path / ("node.bkp.torn-after-5" + (f"-{number}" if number > 1 else ""))
        assert kept.read_bytes() == torn
        assert path.read_bytes()[512:] == whole[512:]


def test_reader_sets_nothing_aside(url: str, tmp_path: Path) -> None:
    append(url, [*started_node(), *payments(4, 6)])
    path = tmp_path / "node.bkp"
    path.write_bytes(path.read_bytes() + b"torn")
    before = path.read_bytes()
    events: list[Event] = []
    with place_at(url).open_reader(on_event=events.append):
        assert events
    assert path.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"node.bkp", "node.bkp.writer"}
