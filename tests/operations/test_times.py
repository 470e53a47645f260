"""When each change was stored: from inside the backup, whatever copies its files."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.cli.commands import cli
from cln_backup.cli.presentation import age, moment
from cln_backup.compaction.compact import compact
from cln_backup.operations.copy import copy
from cln_backup.operations.history import log, status
from tests.format2.small import KINDS, url_of
from tests.histories import append, payment, payments, snapshot_of, started_node
from tests.socket.serving import server_here

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cln_backup.model.change import Change

BEGAN_MS = 1_600_000_000_000
VECTORS = Path(__file__).parent.parent / "vectors"


def dated(changes: Iterable[Change]) -> list[Change]:
    """The changes as if they had been stored one a second."""
    return [replace(change, stored_ms=ms) for ms, change in enumerate(changes, BEGAN_MS)]


def times(url: str) -> list[float | None]:
    with open_reader(url) as backend:
        return [line.stored_at for line in log(backend)]


def last_change_at(url: str) -> float | None:
    with open_reader(url) as backend:
        assert status(backend).last_change_at == backend.last_change.at
        return backend.last_change.at


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A backup that begins with a snapshot; its changes were stored long ago."""
    url = url_of(str(request.param), tmp_path)
    first, *others = dated([snapshot_of(started_node(), tmp_path / "base"), *payments(4, 9)])
    create_backend(url, first)
    assert last_change_at(url) == BEGAN_MS / 1000
    append(url, others)
    return url


EXPECTED = [(BEGAN_MS + number) / 1000 for number in range(6)]


def test_each_change_keeps_the_time_at_which_it_was_stored(url: str) -> None:
    assert times(url) == EXPECTED
    assert last_change_at(url) == EXPECTED[-1]
    with open_reader(url) as backend:
        assert not backend.last_change.by_file
    append(url, [])
    assert last_change_at(url) == EXPECTED[-1]


def test_change_of_now_is_stored_with_the_time_of_now(url: str) -> None:
    before_ms = time.time_ns() // 1_000_000
    append(url, [payment(9)])
    after_ms = time.time_ns() // 1_000_000
    stored = times(url)[-1]
    assert stored is not None
    assert before_ms <= round(stored * 1000) <= after_ms
    assert last_change_at(url) == stored


def test_time_of_the_head_is_known_where_the_newest_segment_has_no_change(url: str) -> None:
    with open_writer(url) as backend:
        backend.rewind()
        assert backend.last_change.at == EXPECTED[-2]
    assert last_change_at(url) == EXPECTED[-2]
    assert times(url) == EXPECTED[:-1]
    with open_reader(url) as backend:
        assert [line.stored_at for line in log(backend, dropped=True)] == [EXPECTED[-1]]


def test_other_programs_copies_do_not_change_when_the_last_change_was_stored(
    url: str, tmp_path: Path
) -> None:
    shutil.copytree(tmp_path / "node", tmp_path / "copy", copy_function=shutil.copyfile)
    assert last_change_at(url.replace("/node", "/copy", 1)) == EXPECTED[-1]


def test_compaction_keeps_the_time_of_what_it_folded(url: str) -> None:
    compact(url)
    assert times(url) == EXPECTED[-2:]
    with open_writer(url) as backend:
        backend.rewind()  # the head is in the base now
    assert times(url) == [EXPECTED[-2]]
    assert last_change_at(url) == EXPECTED[-2]


@pytest.mark.parametrize("target", ["dir://{}/copy", "dir://{}/copy?key-file={}/key"])
def test_copy_keeps_the_time_of_each_change(url: str, target: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(bytes(range(32)))
    there = target.format(tmp_path, tmp_path)
    copy(url, there)
    assert times(there) == EXPECTED


def test_copy_to_file_gives_it_the_time_of_the_head_and_back(url: str, tmp_path: Path) -> None:
    file, back = f"file://{tmp_path}/copy", f"dir://{tmp_path}/back"
    copy(url, file)
    assert os.stat(tmp_path / "copy").st_mtime == pytest.approx(EXPECTED[-1], abs=0.001)
    assert times(file) == [None] * 6
    copy(file, f"file://{tmp_path}/again")
    copy(f"file://{tmp_path}/again", back)
    assert times(back)[:-1] == [None] * 5
    assert last_change_at(back) == pytest.approx(EXPECTED[-1], abs=0.002)


def test_copy_of_a_snapshot_alone_keeps_its_time(tmp_path: Path) -> None:
    made = f"dir://{tmp_path}/node"
    create_backend(made, dated([snapshot_of(started_node(), tmp_path / "base")])[0])
    file, back = f"file://{tmp_path}/copy", f"dir://{tmp_path}/back"
    copy(made, file)
    copy(file, back)
    for there in (file, back):
        assert last_change_at(there) == pytest.approx(EXPECTED[0], abs=0.002)


def test_copy_to_a_server_says_that_the_time_is_another_and_from_one_it_is_kept(
    url: str, tmp_path: Path
) -> None:
    assert copy(url, f"file://{tmp_path}/copy").keeps_time
    with server_here() as server:
        assert copy(server.add(url), f"dir://{tmp_path}/from").keeps_time
        assert times(f"dir://{tmp_path}/from") == [None] * 5 + EXPECTED[-1:]
        assert not copy(url, server.add(f"dir://{tmp_path}/to")).keeps_time


def test_backup_from_before_records_had_times_has_only_those_of_its_files(tmp_path: Path) -> None:
    shutil.copytree(VECTORS / "format2-plain" / "node", tmp_path / "node")
    segment = tmp_path / "node" / "log-0000000002"
    os.truncate(segment, 1 << 18)  # as the release of then made it
    os.utime(segment, (BEGAN_MS / 1000, BEGAN_MS / 1000))
    url = f"dir://{tmp_path}/node"
    assert set(times(url)) == {None}
    with open_reader(url) as backend:
        assert backend.last_change.by_file
        assert backend.last_change.at == BEGAN_MS / 1000
    append(url, dated([payment(9)]))
    assert times(url)[-2:] == [None, EXPECTED[0]]
    assert last_change_at(url) == EXPECTED[0]


def _said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert not cli.main(arguments, standalone_mode=False)
    return capsys.readouterr().out


def test_status_and_log_say_the_times(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = moment(EXPECTED[-1])
    assert f"stored        {at} (" in _said(capsys, "status", url)
    assert f"  {at}  payments, vars" in _said(capsys, "log", url)
    lines = _said(capsys, "log", "--json", url).splitlines()
    assert [json.loads(line)["stored_at"] for line in lines] == EXPECTED
    copy(url, f"file://{tmp_path}/copy")
    out = _said(capsys, "status", f"file://{tmp_path}/copy")
    assert f"file written  {at} (" in out
    assert "stored" not in out
    assert "  -                    payments, vars" in _said(
        capsys, "log", f"file://{tmp_path}/copy"
    )


def test_time_in_the_future_is_said_to_be_one() -> None:
    assert age(time.time() + 7_300) == "2 hours in the future: this machine's clock is or was wrong"
    assert age(time.time() - 7_300) == "2 hours ago"
