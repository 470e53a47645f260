"""Whether an append costs more when the history is long: files, segments, changes."""

from __future__ import annotations

import contextlib
import os
import time
from statistics import median
from typing import TYPE_CHECKING
from unittest.mock import patch

from bench.measures import Row
from bench.socket import running_server
from cln_backup.backends import create_backend, open_writer
from cln_backup.backends.dir import store as dir_store
from cln_backup.backends.dir.store import list_files
from cln_backup.model.change import Change
from cln_backup.storage.local_objects import LocalObjects

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.contract import Writer

_FILES = 5_000
_SEGMENTS = 1_000
_SMALL_SEGMENT_BYTES = 1 << 13
_CHANGES = 20_000
_MEASURED = 1_000
_WARM_UP = 40
_MOST = "≤ 1.1×"


def _change(version: int, noise_bytes: int) -> Change:
    """A change that no compression makes much smaller, so that segments fill."""
    statements = [
        f"INSERT INTO payments VALUES ({version}, x'{os.urandom(noise_bytes).hex()}')",
        (
            "UPDATE vars SET intval = intval + 1 WHERE name = 'data_version' "
            f"AND intval = {version - 1}"
        ),
    ]
    return Change(version, None, statements)


def _append(backend: Writer, noise_bytes: int = 100) -> float:
    change = _change(backend.version + 1, noise_bytes)
    started = time.perf_counter()
    backend.add_change(change)
    return time.perf_counter() - started


def _more_files(path: str) -> None:
    """The parts of a `dir:` backup, and the files beside a `file:` one."""
    start = f"{path}/snapshot-0000000001-" if os.path.isdir(path) else f"{path}.dropped-"
    for number in range(_FILES):
        with open(f"{start}{number:010}", "wb"):
            pass


def _more_segments(url: str) -> None:
    with (
        patch.object(dir_store, "FIRST_SEGMENT_BYTES", _SMALL_SEGMENT_BYTES),
        open_writer(url) as backend,
    ):
        while len(list_files(LocalObjects(url.removeprefix("dir://"))).segments) < _SEGMENTS:
            for _ in range(20):
                _append(backend, _SMALL_SEGMENT_BYTES // 2)


def _more_changes(url: str) -> None:
    with open_writer(url) as backend:
        for _ in range(_CHANGES):
            _append(backend)


_GROWTHS = {
    "files": (f"{_FILES} more files", ("dir", "file")),
    "segments": (f"{_SEGMENTS} more segments", ("dir",)),
    "changes": (f"{_CHANGES} more changes", ("dir", "file")),
}


def growth(directory: str, capture: str) -> Iterator[Row]:  # noqa: ARG001 - as the others
    """The same appends to a fresh backup and to one with a long history, in turn."""
    for grows, (what, schemes) in _GROWTHS.items():
        for scheme in schemes:
            for served in (False, True):
                way = f"server over {scheme}:" if served else f"{scheme}:"
                name = f"{what}, {way}"
                place = os.path.join(directory, f"{grows}-{scheme}-{served}")
                fresh_s, grown_s = _times(place, scheme, grows, served=served)
                yield Row(f"append, p50, fresh: {way}", f"{median(fresh_s) * 1e6:.0f} µs")
                yield Row(f"append, p50, {name}", f"{median(grown_s) * 1e6:.0f} µs")
                ratio = median(grown_s) / median(fresh_s)
                yield Row(f"append, grown / fresh, {name}", f"{ratio:.2f}×", _MOST)


def _times(place: str, scheme: str, grows: str, *, served: bool) -> tuple[list[float], list[float]]:
    paths = [f"{place}-fresh", f"{place}-grown"]
    urls = [f"{scheme}://{path}" for path in paths]
    for url in urls:
        create_backend(url, None)
    if grows == "segments":
        _more_segments(urls[1])
    elif grows == "changes":
        _more_changes(urls[1])
    with contextlib.ExitStack() as stack:
        if served:
            servers = [stack.enter_context(running_server(url)) for url in urls]
            urls = [f"socket:127.0.0.1:{server.port}" for server in servers]
        fresh, grown = (stack.enter_context(open_writer(url)) for url in urls)
        for backend in (fresh, grown):
            for _ in range(_WARM_UP):  # the first one begins a segment
                _append(backend)
        if grows == "files":
            _more_files(paths[1])
        times_s: tuple[list[float], list[float]] = ([], [])
        for index in range(_MEASURED):
            pairs = [(fresh, times_s[0]), (grown, times_s[1])]
            for backend, times in pairs if index % 2 else reversed(pairs):
                times.append(_append(backend))
        return times_s


ALL = (growth,)
