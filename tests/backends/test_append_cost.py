"""Counts the file system calls of an append: they must not grow with the history."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.look import LookSchedule
from cln_backup.model.change import Change
from cln_backup.server.served import Served
from tests.socket.serving import server_here

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    from cln_backup.wire import packets as wire


class _Calls:
    """Counts the calls of `os`, and those of the entries of a directory, in threads to come."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        threading.setprofile(self._note)

    def _note(self, frame: FrameType, event: str, called: Any) -> None:  # noqa: ARG002
        if event != "c_call":
            return
        owner = getattr(called, "__self__", None)
        if isinstance(owner, os.DirEntry) or getattr(owner, "__name__", "") == "posix":
            self.counts[called.__name__] += 1

    @classmethod
    def of_any_kind(cls) -> _Calls:
        """Counts every call of a function, in Python or in C."""
        calls = cls()
        threading.setprofile(calls._note_any)
        return calls

    def _note_any(self, frame: FrameType, event: str, called: Any) -> None:
        if event == "call":
            self.counts[frame.f_code.co_name] += 1
        elif event == "c_call":
            self.counts[called.__name__] += 1

    def during(self, backend: Any, version: int) -> Counter[str]:
        """The calls of one append, on the server's file system."""
        self.counts.clear()
        backend.add_change(_change(version))
        return Counter(self.counts)


@pytest.fixture
def calls() -> Iterator[_Calls]:
    yield _Calls()
    threading.setprofile(None)


@pytest.fixture
def all_calls() -> Iterator[_Calls]:
    yield _Calls.of_any_kind()
    threading.setprofile(None)


def _change(version: int, text: str = "") -> Change:
    insert = f"INSERT INTO payments VALUES ('{text}')"
    step = (
        "UPDATE vars SET intval = intval + 1 WHERE name = 'data_version' "
        f"AND intval = {version - 1}"
    )
    return Change(version, None, [insert, step])


def _grow(place: Path, scheme: str) -> None:
    """Adds what a long history leaves beside the newest segment, or in the file."""
    if scheme == "file":
        for number in range(1000):
            (place.parent / f"backup.dropped-{number}").write_bytes(bytes(10))
        return
    for number in range(1000):
        (place / f"snapshot-0000000001-{number:010}").write_bytes(bytes(10))


@pytest.mark.parametrize("scheme", ["dir", "file"])
def test_an_append_through_the_server_looks_at_no_more_files_in_a_long_history(
    scheme: str, tmp_path: Path, calls: _Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LookSchedule, "is_due", lambda _: True)  # each append is the dearest
    place = tmp_path / "backup"
    create_backend(f"{scheme}://{place}", None)
    with ExitStack() as stack:
        server = stack.enter_context(server_here())
        url = server.add(f"{scheme}://{place}")
        backend = stack.enter_context(open_writer(url))
        for version in (1, 2):  # the first one claims a segment
            backend.add_change(_change(version))
        fresh = calls.during(backend, 3)
        _grow(place, scheme)
        grown = calls.during(backend, 4)
        assert fresh.total() > 0
        assert grown == fresh


def test_an_append_that_begins_a_segment_lists_no_names(tmp_path: Path) -> None:
    place = tmp_path / "backup"
    create_backend(f"dir://{place}", None)
    calls = _Calls()
    threading.setprofile(None)
    with open_writer(f"dir://{place}") as backend:
        backend.add_change(_change(1))
        large = _change(2, os.urandom(1 << 18).hex())
        sys.setprofile(calls._note)
        try:
            backend.add_change(large)
        finally:
            sys.setprofile(None)
    assert (place / "log-0000000002").exists()
    assert calls.counts["link"] == 1
    assert calls.counts["listdir"] == calls.counts["scandir"] == 0


@pytest.mark.parametrize("scheme", ["dir", "file"])
def test_an_append_through_the_server_does_the_same_after_many_changes(
    scheme: str, tmp_path: Path, all_calls: _Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    append = Served.append

    def counting(*arguments: Any, **options: Any) -> wire.Standing:
        all_calls.counts.clear()
        try:
            return append(*arguments, **options)
        finally:
            counted.append(Counter(all_calls.counts))

    monkeypatch.setattr(Served, "append", counting)
    monkeypatch.setattr(LookSchedule, "is_due", lambda _: True)
    place = tmp_path / "backup"
    create_backend(f"{scheme}://{place}", None)
    with ExitStack() as stack:
        server = stack.enter_context(server_here())
        backend = stack.enter_context(open_writer(server.add(f"{scheme}://{place}")))
        for version in range(1, 401):
            backend.add_change(_change(version))
    assert counted[-1].total() > 50
    assert counted[-1] == counted[39]  # the first ones are in the block of the header


@pytest.mark.parametrize("scheme", ["dir", "file"])
def test_who_asks_the_server_for_the_size_gets_that_of_now(scheme: str, tmp_path: Path) -> None:
    place = tmp_path / "backup"
    create_backend(f"{scheme}://{place}", None)
    with server_here() as server:
        url = server.add(f"{scheme}://{place}")
        (served,) = server.nodes.values()
        with open_writer(url) as writer:
            for version in range(1, 4):
                writer.add_change(_change(version))
                with open_reader(url) as reader, open_reader(f"{scheme}://{place}") as beside:
                    assert writer.size_bytes == reader.size_bytes == beside.size_bytes > 0
                    # While a connection that was just closed holds the backup, it is the last one.
                    while served.size_bytes() != beside.size_bytes:
                        time.sleep(0.01)


def test_the_metrics_do_not_wait_for_a_write_to_know_the_size(tmp_path: Path) -> None:
    served = Served("", f"dir://{tmp_path}/backup", None)
    create_backend(served.url, None)
    served.open()
    measured = served.size_bytes()
    with served._changed, ThreadPoolExecutor(1) as other:  # as while a change is stored
        served._writes += 1
        assert other.submit(served.size_bytes).result(60) == measured > 0
    served.close()
