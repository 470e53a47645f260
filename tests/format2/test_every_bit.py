"""Flipping any single bit of a backup is noticed, wherever it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends.dir import log as dir_log
from cln_backup.backends.dir import store as dir_store
from cln_backup.model.errors import Damaged, Locked
from tests.format2.small import KINDS, make_every_kind_of_file, read_all, url_of
from tests.soak import SOAK

if TYPE_CHECKING:
    from pathlib import Path

_PARTS = 7 if SOAK else 31
"""Each part flips every seventh bit, and so one or two of each byte; the one that is always tried
flips every 31st."""


@pytest.mark.parametrize("part", range(_PARTS if SOAK else 1))
@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_is_found(
    kind: str, part: int, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dir_store, "FIRST_SEGMENT_BYTES", 2048)
    monkeypatch.setattr(dir_log, "_SETTLE_TRIES", 0)
    url = url_of(kind, memory_path)
    make_every_kind_of_file(url)
    expected, notices = read_all(url)
    assert notices == []
    # The spare contains nothing yet and the lock file is not part of the backup.
    files = [
        path
        for path in sorted((memory_path / "node").iterdir())
        if path.name.startswith(("log-", "base-", "snapshot-", "key-", "dropped-"))
    ]
    assert {path.name.partition("-")[0] for path in files} >= {"log", "base", "snapshot", "dropped"}
    missed = []
    for path in files:
        content = bytearray(path.read_bytes())
        for place in range(part, len(content) * 8, _PARTS):
            content[place // 8] ^= 1 << place % 8
            path.write_bytes(content)
            try:
                read_all(url)
            except Damaged:
                pass
            except Locked:
                # The byte that says that the backup is encrypted; a plain one seems to need a key.
                assert (place // 8, path.name[:4]) == (9, "base")
            else:
                missed.append((path.name, place))
            content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
    assert missed == []
    assert read_all(url) == (expected, [])
