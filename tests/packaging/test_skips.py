"""A skip in CI of a test that CI could run is a failure, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_TESTS = """
import pytest

@pytest.mark.skipif(True, reason="there is no mkfs.ext4")
def test_by_mark(): pass

def test_inside(): pytest.skip("this machine has one disk only")

def test_allowed(): pytest.skip("does not apply: a file has no segments")

@pytest.mark.xfail(reason="known")
def test_expected(): assert False

def test_passes(): pass
"""
_MODULE = "import pytest\npytest.importorskip('a_package_that_nobody_has')\n"


def _run(place: Path, **environment: str) -> tuple[int, str]:
    (place / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.skips", "-p", "no:cacheprovider", "-rs"],
        cwd=place,
        env={name: value for name, value in os.environ.items() if name != "CI"}
        | {"PYTHONPATH": str(_ROOT)}
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_skip_that_is_not_on_the_list_fails_in_ci(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(_TESTS)
    code, said = _run(tmp_path, CI="true")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "1 passed, 1 skipped, 1 xfailed, 2 errors" in said or (
        "1 failed, 1 passed, 1 skipped, 1 xfailed, 1 error" in said
    )
    assert "Skipped in CI, which must run it: there is no mkfs.ext4" in said
    assert "Skipped in CI, which must run it: this machine has one disk only" in said


def test_module_that_is_skipped_fails_in_ci(tmp_path: Path) -> None:
    (tmp_path / "test_module.py").write_text(_MODULE)
    code, said = _run(tmp_path, CI="true")
    assert code == pytest.ExitCode.INTERRUPTED
    assert "Skipped in CI, which must run it: could not import" in said


def test_skips_are_skips_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(_TESTS)
    (tmp_path / "test_module.py").write_text(_MODULE)
    code, said = _run(tmp_path)
    assert code == 0
    assert "1 passed, 4 skipped, 1 xfailed" in said
