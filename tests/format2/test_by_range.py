"""A reader needs nothing but objects that are read by parts, as a store in a network has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cln_backup.backends import open_reader, open_writer
from cln_backup.storage import objects
from cln_backup.storage.local_objects import LocalObjects
from tests.backends.set_back import compact
from tests.format2.small import KINDS, make_every_kind_of_file, read_all, url_of
from tests.histories import append, payment, told

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", KINDS)
def test_whole_backup_is_read_by_requests_for_parts(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(kind, tmp_path)
    make_every_kind_of_file(url)
    with open_writer(url) as writer:
        compact(writer)
    append(url, [payment(9)])
    expected = read_all(url)
    requests = []

    def by_range(self: LocalObjects, name: str, *, op: str, anew: bool = False) -> Any:
        requests.append(name)
        return objects.Objects.open(self, name, op=op, anew=anew)

    monkeypatch.setattr(LocalObjects, "open", by_range)
    assert read_all(url) == expected
    with open_reader(url) as backend:
        assert len(told(backend.dropped_changes())) == 1
    assert {name.partition("-")[0] for name in requests} == {"base", "log", "dropped", "snapshot"}
