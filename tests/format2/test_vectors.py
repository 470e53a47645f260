"""Files that were written once, by the first release with this format: always readable."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest

from cln_backup.backends import open_reader
from cln_backup.backends.dir import store as dir_store
from tests.format2.small import read_all
from tests.histories import append, payment, told, told_by

VECTORS = Path(__file__).parent.parent / "vectors"
UNLOCKED_BY = (
    ("plain", ""),
    ("encrypted", "?key-file={}/node.key"),
    ("encrypted", "?hsm-secret={}/hsm_secret"),
    ("encrypted", "?passphrase-file={}/passphrase"),
)


@pytest.mark.parametrize(("kind", "query"), UNLOCKED_BY)
def test_frozen_backup_is_read_and_continued(
    kind: str, query: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dir_store, "FIRST_SEGMENT_BYTES", 2048)  # as they were made with
    place = tmp_path / "vector"
    shutil.copytree(VECTORS / f"format2-{kind}", place)
    expected = [
        (version, kind_of, tuple(base64.b64decode(text) for text in content))
        for version, kind_of, content in json.loads((place / "told.json").read_text())
    ]
    url = f"dir://{place}/node" + query.format(place)
    found, notices = read_all(url)
    assert [(t.version, t.kind.value, t.content) for t in found] == expected
    assert notices == []
    append(url, [payment(9)])
    assert told_by(url) == [*found, *told([payment(9)])]
    with open_reader(url) as backend:
        backend.check()
