"""Readers that open the directory while a writer appends to it without a pause."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader
from tests.format2.small import KINDS, url_of
from tests.histories import append, payments, started_node, told

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", KINDS)
def test_reader_beside_a_busy_writer_sees_a_beginning(kind: str, memory_path: Path) -> None:
    url = url_of(kind, memory_path)
    create_backend(url, None)
    append(url, started_node())
    changes = payments(4, 3_000)
    expected = told([*started_node(), *changes])

    def write() -> None:
        append(url, changes)

    writer = threading.Thread(target=write)
    writer.start()
    opened = 0
    while writer.is_alive():
        with open_reader(url) as reader:
            found = told(reader.stream_changes())
            assert found == expected[: len(found)]
            assert reader.standing.version_count == len(found)
        opened += 1
    writer.join()
    assert opened > 0
    with open_reader(url) as reader:
        assert told(reader.stream_changes()) == expected
