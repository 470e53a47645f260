from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING

import pytest

from tests.docs import scenes
from tests.docs.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of all machines, made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base
    made = shared / "machine"
    with (shared / "machine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            scenes.build_template(shared / "machine.new")
            (shared / "machine.new").rename(made)
    return made


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Sandbox]:
    made = Sandbox(tmp_path / "machine")
    yield made
    made.close()
