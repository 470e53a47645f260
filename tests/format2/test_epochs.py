"""Two writers that do not know of each other, as on two machines that share the directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_backend
from cln_backup.errors import StorageError, WriterConflict
from tests.format2.small import KINDS, url_of
from tests.histories import append, payment, started_node, told, told_by

if TYPE_CHECKING:
    from pathlib import Path

    from cln_backup.backends.base import Backend


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = url_of(str(request.param), tmp_path)
    create_backend(url, None)
    append(url, started_node())
    return url


def _open_elsewhere(url: str, tmp_path: Path) -> Backend:
    """Opens for writing as a machine does that does not see the other's lock."""
    (tmp_path / "node" / "backup.writer").unlink(missing_ok=True)
    return open_backend(url, writable=True)


def test_writer_of_an_older_epoch_is_refused_at_its_next_append(url: str, tmp_path: Path) -> None:
    with open_backend(url, writable=True) as old:
        old.add_change(payment(4))
        with _open_elsewhere(url, tmp_path) as new:
            new.add_change(payment(5, "by the newer one"))
            with pytest.raises(WriterConflict, match="lost the right to write"):
                old.add_change(payment(5, "by the older one"))
            with pytest.raises(StorageError):
                old.add_change(payment(5, "by the older one"))
            new.add_change(payment(6))
    expected = [*started_node(), payment(4), payment(5, "by the newer one"), payment(6)]
    assert told_by(url) == told(expected)


def test_writer_that_found_another_end_than_stands_there_is_refused(
    url: str, tmp_path: Path
) -> None:
    with open_backend(url, writable=True) as one, _open_elsewhere(url, tmp_path) as other:
        one.add_change(payment(4, "one"))
        with pytest.raises((WriterConflict, StorageError)):
            other.add_change(payment(4, "other"))
    assert told_by(url) == told([*started_node(), payment(4, "one")])
    append(url, [payment(5)])


def test_each_start_of_a_writer_that_appends_begins_a_segment(url: str, tmp_path: Path) -> None:
    for version in range(4, 8):
        append(url, [payment(version)])
    with open_backend(url, writable=True):
        pass
    names = sorted(path.name for path in (tmp_path / "node").glob("log-*"))
    assert names == [f"log-{number:010}" for number in range(1, 6)]
    with open_backend(url) as backend:
        backend.read_through()
