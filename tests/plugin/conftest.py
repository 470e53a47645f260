from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.plugin.home import KINDS, Home

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of backup that a node may have."""
    return str(request.param)


@pytest.fixture
def home(kind: str, tmp_path: Path) -> Home:
    """A node's home with a backup of each kind, which `init` makes."""
    return Home(tmp_path, kind)
