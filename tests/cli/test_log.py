"""`backup-cli log --follow`, and the lines of `log` on a terminal."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from cln_backup.backends import create_backend, open_writer
from cln_backup.compaction.compact import compact
from tests import programs
from tests.histories import add_all, append, payments, started_node
from tests.terminals import shown_on

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.programs import Program

_HISTORY = [*started_node(), *payments(4, 20)]


@pytest.fixture(params=["dir", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = f"{request.param}://{tmp_path}/backup"
    create_backend(url, None)
    append(url, _HISTORY)
    return url


@contextlib.contextmanager
def _following(*arguments: object) -> Iterator[Program]:
    with programs.start(
        "backup-cli", "log", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _next(process: Program) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_follow(url: str, number: signal.Signals) -> None:
    with _following("--follow", "--json", url) as process:
        assert [_next(process)["version"] for _ in range(10)] == list(range(10, 20))
        append(url, payments(20, 22))
        assert [_next(process)["version"] for _ in range(2)] == [20, 21]
        with open_writer(url) as writer:
            writer.rewind()
            gone = _next(process)
            assert (gone["version"], gone["dropped"]) == (21, True)
            add_all(writer, payments(21, 23))
        lines = [_next(process) for _ in range(2)]
        assert [line["version"] for line in lines] == [21, 22]
        assert "dropped" not in lines[0]
        compact(url)
        append(url, payments(23, 24))
        assert _next(process)["version"] == 23
        process.send_signal(number)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (0, "", "")


def test_follow_from_a_version(url: str) -> None:
    with _following("-f", "--from", 3, url) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(3)]
        assert lines[0][:2] == ["version", "kind"]
        assert [line[0] for line in lines[1:]] == ["3", "4"]
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 0


def test_dropped_changes_are_not_followed(url: str) -> None:
    assert programs.run("log", "--follow", "--dropped", url).returncode == 2


def test_each_change_is_one_line_of_the_terminal(tmp_path: Path) -> None:
    url = f"dir://{tmp_path}/backup"
    create_backend(url, None)
    append(url, started_node())
    for columns in (60, 80, 110):
        lines = shown_on(columns, "log", url).splitlines()
        assert len(lines) == 1 + len(started_node())
        assert max(map(len, lines)) == columns
        assert any(line.endswith("…") for line in lines)
        assert ("statements" in lines[0]) is (columns >= 100)
    assert max(map(len, programs.run("log", url).stdout.splitlines())) > 110
