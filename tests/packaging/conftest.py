from __future__ import annotations

import fcntl
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.packaging.release import ROOT, build_release

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a release of this checkout, built by the first test that wants it."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    if shutil.which("dpkg-deb") is None or not os.path.exists("/usr/bin/python3"):
        pytest.skip("not Debian: no dpkg-deb, or no Python of its own")
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    built = base / "release"
    with (base / "release.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (built / "SHA256SUMS").exists():
            build_release(base / "release-checkout", built, "022")
    return built
