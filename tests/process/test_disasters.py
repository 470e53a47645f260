"""A process and its child: what each side makes of the other's death, and what comes through."""

from __future__ import annotations

import array
import ast
import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from typing import TYPE_CHECKING

import pytest

from cln_backup.model import errors
from cln_backup.model.errors import BackupError, BrokenInstallation, Damaged, StorageError
from cln_backup.process import channel
from cln_backup.process.child import Child
from tests.process.work import Answer, Ask, Start
from tests.waiting import WAIT_S, has_ended, wait_until, wait_until_ended

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "a secret word"  # noqa: S105 - of a test


class Other(channel.Message):
    """What no child of these tests says."""


def child(work: str, *, path: Path | str = "", lowest_priority: bool = False) -> Child[Answer]:
    start = Start(work, SECRET, str(path))
    return Child(
        "tests.process.work",
        start,
        (Answer,),
        work="does the work",
        lowest_priority=lowest_priority,
    )


def test_messages_come_back_as_they_were_whatever_their_size() -> None:
    with child("echo") as echo:
        for size in (0, 1, 8, 65_535, 65_536, 1 << 20, 20_000_000):
            sent = os.urandom(min(size, 1_000)) * (size // 1_000 + 1)
            echo.send(Ask(sent[:size]))
            assert echo.receive().data == sent[:size]


def test_child_that_speaks_as_another_release_does_is_an_error_of_its_own() -> None:
    """An upgrade beside a running node: nothing but a `BackupError` may reach the plugin's loop."""
    start = Start("echo", SECRET, "")
    with Child("tests.process.work", start, (Other,), work="does the work") as echo:
        echo.send(Ask(b"word"))
        with pytest.raises(StorageError, match="cln-backup was upgraded meanwhile") as caught:
            echo.receive()
        assert "word" not in str(caught.value)


def test_step_waits_for_no_more_than_there_is() -> None:
    """The plugin polls: a message that has come in part must not hold the node up."""
    with child("echo") as echo:
        echo.send(Ask(bytes(3_000_000)))
        steps = 1
        while (said := echo.step()) is None:
            assert select.select([echo], [], [], WAIT_S)[0]
            steps += 1
        assert said.data == bytes(3_000_000)
        assert steps > 2


@pytest.mark.parametrize("lowest", [False, True])
def test_starts_without_a_thread_and_shows_nobody_a_secret(
    lowest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH")  # it would keep the priority: see conftest.py
    threads = set(threading.enumerate())
    with child("tell", lowest_priority=lowest) as tells:
        assert set(threading.enumerate()) <= threads, "others may end meanwhile"
        told = ast.literal_eval(tells.receive().data.decode())
    own_session, priority, secret = told
    assert own_session, "no signal of the terminal reaches it"
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert priority == (min(19, own + 19) if lowest else own)
    assert secret == SECRET


def test_log_reaches_the_log_of_the_parent(caplog: pytest.LogCaptureFixture) -> None:
    with child("log") as logs, pytest.raises(StorageError, match="exit code 0"):
        logs.receive()
    told = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert told == [("cln_backup.elsewhere", "WARNING", "50 % of it")]


def test_closed_pipe_stops_the_work_and_what_is_unfinished_is_removed(tmp_path: Path) -> None:
    waits = child("wait", path=tmp_path / "cleared")
    assert waits.receive().data == b"begun"
    waits.close()
    waits.wait(WAIT_S)
    assert (tmp_path / "cleared").exists()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signal_stops_the_work_and_the_parent_hears_of_it(name: str, tmp_path: Path) -> None:
    with child("wait", path=tmp_path / "cleared") as waits:
        waits.receive()
        os.kill(waits.pid, signal.Signals[name])
        with pytest.raises(errors.Interrupted, match="stopped"):
            waits.receive()
        assert (tmp_path / "cleared").exists()


def test_signal_in_the_middle_of_a_message_comes_after_it() -> None:
    with child("say much") as says:
        assert says.receive().data == bytes(300_000)
        _wait_until_full(says.fileno())
        os.kill(says.pid, signal.SIGTERM)
        time.sleep(0.2)  # so that it takes the signal before there is room
        with pytest.raises(errors.Interrupted, match="stopped"):
            _receive_to_the_end(says)


def _wait_until_full(fd: int) -> None:
    """Waits until a pipe is full, where the system tells: its writer is in the middle then."""
    size = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) if hasattr(fcntl, "F_GETPIPE_SZ") else 0
    held = array.array("i", [0])

    def is_full() -> bool:
        fcntl.ioctl(fd, termios.FIONREAD, held)
        return held[0] >= size - 2 * 4096

    wait_until(is_full, "the pipe does not fill")


def test_closed_at_once_ends_before_it_begins(tmp_path: Path) -> None:
    waits = child("wait", path=tmp_path / "cleared")
    waits.close()
    waits.wait(WAIT_S)
    assert has_ended(waits.pid)


def test_stopped_process_is_killed_in_the_end(tmp_path: Path) -> None:
    waits = child("wait", path=tmp_path / "cleared")
    waits.receive()
    os.kill(waits.pid, signal.SIGSTOP)
    waits.close()
    waits.wait(0.05)
    assert has_ended(waits.pid)
    assert not (tmp_path / "cleared").exists()


def test_released_process_goes_on_to_its_end(tmp_path: Path) -> None:
    works = child("work on", path=tmp_path / "finished")
    works.receive()
    works.release()
    works.wait(WAIT_S)
    assert (tmp_path / "finished").exists()


@pytest.mark.parametrize(
    ("work", "begun"), [("echo", False), ("echo", True), ("wait", True), ("say much", True)]
)
def test_killed_child_is_a_clear_error(work: str, begun: bool, tmp_path: Path) -> None:
    with child(work, path=tmp_path / "cleared") as killed:
        if begun:
            if work == "echo":
                killed.send(Ask(b""))
            killed.receive()
        os.kill(killed.pid, signal.SIGKILL)
        message = r"The process that does the work ended unexpectedly \(SIGKILL\).* is unchanged"
        with pytest.raises(StorageError, match=message):
            _receive_to_the_end(killed)
        with pytest.raises(StorageError, match=message):
            killed.send(Ask(bytes(100_000)))
    assert has_ended(killed.pid)


def _receive_to_the_end(said: Child[Answer]) -> None:
    while True:
        said.receive()


_PARENT = """
import sys, time
from tests.process.test_disasters import child
one = child(sys.argv[1], path=sys.argv[2])
if sys.argv[3] == "at work":
    one.receive()
print(one.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("work", "moment", "name"),
    [
        ("wait", "at its start", "SIGKILL"),
        ("wait", "at work", "SIGKILL"),
        ("wait", "at work", "SIGINT"),
        ("say much", "at work", "SIGKILL"),
    ],
)
def test_child_ends_with_its_parent(work: str, moment: str, name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PARENT, work, f"{tmp_path}/cleared", moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.Signals[name])
    wait_until_ended(pid)
    if (work, moment) == ("wait", "at work"):
        assert (tmp_path / "cleared").exists()


def test_child_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(StorageError, match="Cannot start the process that does the work"):
        child("echo")


@pytest.mark.parametrize(
    ("work", "kind", "text"),
    [
        ("memory", StorageError, "Not enough memory"),
        ("import", BrokenInstallation, "no module"),
        ("system", StorageError, "Cannot continue with this: what the system says"),
        ("fault", StorageError, r"KeyError in .*work.py:\d+.*please report"),
    ],
)
def test_what_fails_is_told_without_what_it_worked_on(
    work: str, kind: type[BackupError], text: str
) -> None:
    with child(work) as fails, pytest.raises(kind, match=text) as found:
        fails.receive()
    assert "secret" not in str(found.value)


def test_error_comes_through_with_its_type() -> None:
    with child("damaged") as fails, pytest.raises(Damaged) as found:
        fails.receive()
    same = Damaged("what happened", offset_bytes=7, good_version=3)
    assert (str(found.value), vars(found.value)) == (str(same), vars(same))


@pytest.mark.parametrize(
    "kind",
    [kind for kind in vars(errors).values() if isinstance(kind, type)],
    ids=lambda kind: kind.__name__,
)
def test_each_error_comes_through_whole(kind: type[BackupError]) -> None:
    error = kind("what happened")
    error.__dict__.update(dict.fromkeys(error.__dict__, 7))
    again = channel.error_of(channel.failure(error), "does the work")
    assert (type(again), str(again), vars(again)) == (kind, "what happened", vars(error))
