"""A compaction is done only where it pays, and says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.ticket import Size, Ticket, size_of
from cln_backup.compaction.compact import compact
from cln_backup.compaction.compactor import Compactor
from cln_backup.server.served import Served
from tests import programs
from tests.disasters.places import KINDS, url_in
from tests.histories import append, payments, started_node, told_by, wearing_payments

if TYPE_CHECKING:
    from cln_backup.backends.ticket import Statistics


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A backup whose history is shorter than the database that it makes."""
    url = url_in(tmp_path, str(request.param))
    create_backend(url, None)
    append(url, [*started_node(), *payments(4, 8)])
    return url


def _files(url: str) -> set[Path]:
    path = Path(url.partition("://")[2].partition("?")[0])
    place = path.parent if url.startswith("file:") else path
    return {path for path in place.iterdir() if not path.name.startswith("spare")}


def _as_it_was(statistics: Statistics, url: str) -> None:
    with open_reader(url) as backend:
        assert statistics["before"] == statistics["after"] == size_of(backend)
    assert statistics["would_be"]["backupsize"] >= statistics["before"]["backupsize"]
    assert statistics["would_be"]["version_count"] == 2


def test_small_backup_is_left_as_it_was(url: str) -> None:
    told, files = told_by(url), _files(url)
    _as_it_was(compact(url, if_it_pays=True), url)
    assert (told_by(url), _files(url)) == (told, files)


def test_small_backup_is_left_as_it_was_beside_its_writer(url: str) -> None:
    told, files = told_by(url), _files(url)
    with open_writer(url) as writer:
        compactor = Compactor(writer, if_it_pays=True)
        while (statistics := compactor.step()) is None:
            pass
        compactor.close()
        compactor.wait()
    _as_it_was(statistics, url)
    assert (told_by(url), _files(url)) == (told, files)


def test_server_follows_the_same_rule(url: str) -> None:
    served = Served("node", url, None)
    served.open()
    statistics = served.compact()
    served.close()
    _as_it_was(statistics, url)


def test_what_it_would_be_is_what_it_becomes(url: str) -> None:
    would_be = compact(url, if_it_pays=True)["would_be"]
    assert compact(url)["after"] == would_be


def test_history_that_wears_is_compacted(url: str) -> None:
    append(url, wearing_payments(8, 60))
    append(url, payments(60, 61))  # a directory begins a segment, and the one before can go
    statistics = compact(url, if_it_pays=True)
    assert "would_be" not in statistics
    assert statistics["after"]["backupsize"] < statistics["before"]["backupsize"]
    assert statistics["after"]["version_count"] == 2


@pytest.mark.parametrize(
    ("saved_bytes", "folded", "worth_it"),
    [(1, 1, True), (0, 1, False), (-1, 99_999, False), (-1, 100_000, True)],
)
def test_rule(saved_bytes: int, folded: int, worth_it: bool) -> None:
    before: Size = {"backupsize": 1_000, "version_count": 200_000}
    after: Size = {"backupsize": 1_000 - saved_bytes, "version_count": 200_000 - folded}
    assert Ticket(before, after).pays() is worth_it


def test_command_says_so_with_both_figures(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(url, [*started_node(), *payments(4, 8)])
    shown = [
        programs.run("compact", *option, url).stdout
        for option in ([], ["--json"], ["--force", "--json"])
    ]
    assert shown[0].startswith("Not compacted: it would not get smaller. It has ")
    assert "in 9 changes, and would have" in shown[0]
    left, forced = json.loads(shown[1]), json.loads(shown[2])
    assert left["before"] == left["after"] == forced["before"]
    assert left["would_be"] == forced["after"]
