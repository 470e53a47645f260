"""A writer finds the newest segment among the names of a directory without reading them all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends.dir.store import list_files, newest_segment
from cln_backup.storage.local_objects import LocalObjects

if TYPE_CHECKING:
    from pathlib import Path

_OTHERS = (
    "backup.writer", "base-0000000003-0000000002", "dropped-7", "key-node", "snapshot-0000000009-1",
    "snapshot-0000000009-0000000128", "spare", "spare.first-9", "logs",
)  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("log-0000000001",),
        ("log-0000000009", "log-0000000010", "log-0000000002"),
        ("log-9999999999", "log-99999999999"),
        ("log-0000000004", "log-0000000005.bak", "log-0000000006~", "log-", "log-x"),
        ("log-0000000005.bak",),
    ],
)
@pytest.mark.parametrize("others", [(), _OTHERS], ids=["alone", "among others"])
def test_the_newest_segment_is_the_last_of_those_that_are_listed(
    names: tuple[str, ...], others: tuple[str, ...], tmp_path: Path
) -> None:
    for name in (*names, *others):
        (tmp_path / name).touch()
    objects = LocalObjects(str(tmp_path))
    listed = list_files(objects).segments
    assert newest_segment(objects) == max(listed, default=0)
