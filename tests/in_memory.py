"""Directories in memory, for tests that need not wait for a disk.

A sync takes milliseconds on a disk that other tests use too. Where the file system is what is
tested, a test takes pytest's own `tmp_path`, on the disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEMORY = "/dev/shm"  # noqa: S108 - it is where a file system in memory is
_ROOM_BYTES = 4 << 30
"""The large databases of all workers together take a quarter of it."""


def directory_with_room() -> str | None:
    """The directory for whole tests; `None` if it is missing, has little room, or runs nothing."""
    if not os.access(_MEMORY, os.W_OK):
        return None
    found = os.statvfs(_MEMORY)
    if found.f_flag & getattr(os, "ST_NOEXEC", 0):
        return None
    return _MEMORY if found.f_bavail * found.f_frsize >= _ROOM_BYTES else None


@contextlib.contextmanager
def _new(place: str | None, *, ignore_errors: bool) -> Iterator[Path]:
    """A directory whose parent is the test's alone, too: a key is beside its backup."""
    parent = Path(tempfile.mkdtemp(prefix="cln-backup-", dir=place))
    try:
        path = parent / "test"
        path.mkdir(mode=0o700)
        yield path
    finally:
        shutil.rmtree(parent, ignore_errors=ignore_errors)


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A directory in memory if there is one; for frequent attempts."""
    with _new(_MEMORY if os.access(_MEMORY, os.W_OK) else None, ignore_errors=False) as path:
        yield path


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """As pytest's, but in memory if there is room. The `conftest.py` of a directory imports it."""
    directory = directory_with_room()
    if directory is None:
        yield tmp_path_factory.mktemp("test")
        return
    # What a test has killed may write to it until the end.
    with _new(directory, ignore_errors=True) as path:
        yield path
