"""A recording of a real node, from the community's format to this one and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend
from cln_backup.operations.copy import copy
from tests import captured
from tests.format2.small import KINDS, url_of
from tests.histories import append, told, told_by

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", KINDS)
def test_backup_of_the_communitys_format_moves_over_and_back(kind: str, tmp_path: Path) -> None:
    capture = captured.COMMITTED / "small" / "payer.jsonl.xz"
    old, back = f"file://{tmp_path}/old", f"file://{tmp_path}/back"
    create_backend(old, None)
    append(old, captured.changes(capture))
    url = url_of(kind, tmp_path)
    copied = copy(old, url)
    assert copied.version_count == len(told_by(old))
    copy(url, back)
    assert told_by(url) == told(captured.changes(capture))
    assert (tmp_path / "back").read_bytes() == (tmp_path / "old").read_bytes()
