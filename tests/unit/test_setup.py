"""`make setup` where it cannot work: at once, in one line, and nothing is made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_OLD = """#!/bin/sh
exec '{}' -c 'import sys; sys.version_info = (3, 9, 18, "final", 0); exec(sys.argv[1])' "$2"
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that `make setup` uses, at a path with a space."""
    directory = tmp_path / "a checkout"
    directory.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(_ROOT / name, directory)
    return directory


def _refused(checkout: Path, python: str, **environment: str) -> str:
    before = sorted(checkout.iterdir())
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "setup", f"PYTHON={python}"],
        cwd=checkout,
        env=own | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert sorted(checkout.iterdir()) == before
    said, makes_own = done.stderr.splitlines()
    assert makes_own.startswith("make")
    return said


def test_old_python_is_refused(checkout: Path) -> None:
    old = checkout / "python 3.9"
    old.write_text(_OLD.format(sys.executable))
    old.chmod(0o755)
    assert "needs Python 3.10 or later, and" in _refused(checkout, str(old))


def test_python_without_venv_is_refused_with_the_packages_name(
    checkout: Path, tmp_path: Path
) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "ensurepip.py").write_text("raise ImportError")
    said = _refused(checkout, sys.executable, PYTHONPATH=str(tmp_path / "hidden"))
    assert "apt install python3-venv" in said
