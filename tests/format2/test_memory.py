"""Memory stays flat in a process that opens, appends, reads and closes for as long as it lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader
from cln_backup.formats import v2
from cln_backup.formats.v2_stream import Inflater
from tests.format2.small import KINDS, url_of
from tests.histories import append, payment, started_node

if TYPE_CHECKING:
    from collections.abc import Callable

_MORE_MB = 32


def _address_space_mb() -> int:
    """The mapped memory of this process, touched or not: a decompressor's window is not touched."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * 4096 >> 20


def _grows_by_mb(act: Callable[[int], None], times: int) -> int:
    for number in range(times // 10):
        act(number)
    before = _address_space_mb()
    for number in range(times // 10, times):
        act(number)
    return _address_space_mb() - before


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_backups_that_were_read_and_closed_leave_nothing_behind(kind: str, tmp_path: Path) -> None:
    url = url_of(kind, tmp_path)
    create_backend(url, None)
    append(url, started_node())

    def use(number: int) -> None:
        if number % 10 == 0:
            append(url, [payment(4 + number // 10)])
        with open_reader(url) as backend:
            for _ in backend.stream_changes():
                pass
            next(backend.stream_changes(2))  # and stops in the middle
            backend.check()

    assert _grows_by_mb(use, 200) < _MORE_MB


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_decompressor_that_is_no_longer_needed_gives_its_window_back() -> None:
    def use(_: int) -> None:
        with pytest.raises(v2.Malformed):
            Inflater().inflate(b"\x00\x00\x00\x05 no zstd")

    assert _grows_by_mb(use, 2_000) < _MORE_MB


_BOMB = """
import resource, struct, zstandard
from cln_backup.formats.v2_stream import Inflater
bomb = zstandard.ZstdCompressor().compressobj()
zeros = bytes(1 << 20)
packed = b"".join(bomb.compress(zeros) for _ in range(2048)) + bomb.flush()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert len(Inflater().inflate(struct.pack("!I", 10) + packed)) == 10
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts in KiB elsewhere")
def test_record_that_holds_far_more_than_it_says_takes_little_memory() -> None:
    run = subprocess.run([sys.executable, "-c", _BOMB], check=True, capture_output=True, text=True)
    assert int(run.stdout) < _MORE_MB
