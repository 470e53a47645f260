"""The cost for the node of the writer's look before a write."""

from __future__ import annotations

import glob
import itertools
import os
import time
from statistics import fmean, median
from typing import TYPE_CHECKING

from bench import drive
from bench.measures import Row
from cln_backup.backends import create_backend, open_writer
from cln_backup.backends.dir.appender import DirWriter
from cln_backup.backends.file.end import FileEnd
from cln_backup.backends.file.writer import FileWriter
from cln_backup.backends.look import LookSchedule
from cln_backup.model.change import Change

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cln_backup.backends.contract import Writer
    from cln_backup.backends.dir.writer import SegmentWriter

_CALLS = 4_000
_MOST = 0.05


class _Never(LookSchedule):
    def is_due(self) -> bool:
        return False


def _url(directory: str, kind: str, name: str) -> str:
    place = os.path.join(directory, name)
    if kind == "file:":
        return f"file://{place}"
    if kind == "dir:":
        return f"dir://{place}"
    with open(f"{place}.key", "wb") as file:
        file.write(os.urandom(32))
    return f"dir://{place}?key-file={place}.key"


def _opened(directory: str, kind: str, name: str) -> Writer:
    url = _url(directory, kind, name)
    create_backend(url, None)
    return open_writer(url)


def _looker(backend: Writer) -> FileEnd | SegmentWriter:
    """The part of a writer that looks."""
    if isinstance(backend, FileWriter):
        assert backend._written is not None  # noqa: SLF001
        return backend._written  # noqa: SLF001
    assert isinstance(backend, DirWriter)
    assert backend._writer is not None  # noqa: SLF001
    return backend._writer  # noqa: SLF001


def _look(backend: Writer) -> None:
    looker = _looker(backend)
    if isinstance(looker, FileEnd):
        looker.look(backend.size_bytes)
    else:
        looker.look()


def _timed(backend: Writer, change: Change) -> float:
    started = time.perf_counter()
    backend.add_change(change)
    return time.perf_counter() - started


def looks(directory: str, capture: str) -> Iterator[Row]:
    """Appends with looks and without, in turn; one look; the greatest share of calls that look."""
    calls = list(itertools.islice(drive.calls(capture), _CALLS))
    small = os.path.join(os.path.dirname(os.path.dirname(capture)), "small")
    share = 0.0
    for path in sorted({capture, *glob.glob(os.path.join(small, "*.jsonl.xz"))}):
        found = share_at_rhythm(call["t"] for call in drive.calls(path))
        yield Row(f"calls that look: {'/'.join(path.split('/')[-2:])}", f"{found:.1%}")
        share = max(share, found)
    for number, kind in enumerate(("file:", "dir:", "dir:, encrypted")):
        with (
            _opened(directory, kind, f"with{number}") as looking,
            _opened(directory, kind, f"without{number}") as blind,
        ):
            _looker(blind).schedule = _Never()
            with_s: list[float] = []
            without_s: list[float] = []
            look_s: list[float] = []
            for index, call in enumerate(calls):
                change = Change(call["data_version"], None, call["writes"])
                pairs = [(looking, with_s), (blind, without_s)]
                for backend, times_s in pairs if index % 2 else reversed(pairs):
                    times_s.append(_timed(backend, change))
                if index % 8 == 7:
                    started = time.perf_counter()
                    _look(blind)
                    look_s.append(time.perf_counter() - started)
        cost = share * median(look_s) / median(without_s)
        yield Row(f"append without looks, p50: {kind}", f"{median(without_s) * 1e6:.0f} µs")
        yield Row(f"append with looks, p50: {kind}", f"{median(with_s) * 1e6:.0f} µs")
        yield Row(f"one look, p50: {kind}", f"{median(look_s) * 1e6:.0f} µs")
        yield Row(f"one look, mean: {kind}", f"{fmean(look_s) * 1e6:.0f} µs")
        total = fmean(with_s) / fmean(without_s) - 1
        yield Row(f"looks / wait, in quick succession: {kind}", f"{total:+.1%}", f"≤ {_MOST:.0%}")
        yield Row(f"looks / wait, recorded node: {kind}", f"{cost:.1%}", f"≤ {_MOST:.0%}")


def share_at_rhythm(times_s: Iterable[float]) -> float:
    """The share of calls, each made at such a time, before which a writer looks."""
    now = 0.0
    schedule = LookSchedule(lambda: now)
    due = []
    for at_s in times_s:
        now = at_s
        due.append(schedule.is_due())
        schedule.appended()
    return sum(due) / len(due)


ALL = (looks,)
