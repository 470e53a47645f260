from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import pytest

from tests.in_memory import tmp_path
from tests.plugin.home import DIRECTORIES, Home
from tests.soak import kinds_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["home", "tmp_path"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test with a file and with a directory, plain or encrypted; `make soak`: with both.

    What differs between those two is the format's, whose own tests hold it. Half of the tests have
    the one and half have the other, always the same.
    """
    marks = metafunc.definition.iter_markers("parametrize")
    if "kind" in metafunc.fixturenames and not any("kind" in mark.args[0] for mark in marks):
        number = zlib.crc32(metafunc.definition.name.encode()) % len(DIRECTORIES)
        metafunc.parametrize("kind", kinds_of("file", DIRECTORIES[number]))


@pytest.fixture
def home(kind: str, tmp_path: Path) -> Home:
    """A node's home with a backup of each kind, which `init` makes."""
    return Home(tmp_path, kind)
