"""The source archive: it holds all that `make test` needs, and the version is in one place."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING

import pytest

import cln_backup
from tests.packaging.release import ROOT as _ROOT
from tests.packaging.release import listed

if TYPE_CHECKING:
    from pathlib import Path

_ADDED = {"PKG-INFO"}
"""Files of the archive that are not in the repository."""

_LEFT_OUT: set[str] = set()
"""Files of the repository that are left out of the archive on purpose."""


@pytest.mark.skipif(not (_ROOT / ".git").exists(), reason="not a git checkout")
def test_archive_holds_every_file_of_the_repository(tmp_path: Path) -> None:
    # `build` is not imported here: the checkout may have a directory of this name.
    subprocess.run(
        [
            *(sys.executable, "-m", "build", "--sdist", "--no-isolation"),
            *("--skip-dependency-check", "--outdir", tmp_path, _ROOT),
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    (archive,) = tmp_path.iterdir()
    top = f"cln_backup-{cln_backup.__version__}"
    assert archive.name == f"{top}.tar.gz"
    with tarfile.open(archive) as packed:
        found = {name.removeprefix(f"{top}/") for name in packed.getnames()}
        described = packed.extractfile(f"{top}/PKG-INFO")
        assert described is not None
        assert f"\nVersion: {cln_backup.__version__}\n" in described.read().decode()
    assert listed() - found == _LEFT_OUT
    assert found - listed("--cached", "--others", "--exclude-standard") == _ADDED


def test_version_is_written_once() -> None:
    written = [
        path.relative_to(_ROOT).as_posix()
        for directory in ("src", "contrib", ".ci")
        for path in (_ROOT / directory).rglob("*")
        if path.suffix != ".pyc" and path.is_file()
        if f'"{cln_backup.__version__}"' in path.read_text()
    ]
    assert written == ["src/cln_backup/__init__.py"]
    assert "\nversion = " not in (_ROOT / "pyproject.toml").read_text()
