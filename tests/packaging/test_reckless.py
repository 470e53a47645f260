"""`reckless` finds the entry and the requirements of this plugin where it looks for them."""

from __future__ import annotations

import subprocess
import sys

from tests.documents import ROOT


def test_entry_is_the_plugin() -> None:
    """It has the repository's name, beside the requirements; reckless runs it once as a test."""
    entry = ROOT / "cln-backup.py"
    done = subprocess.run(
        [sys.executable, str(entry)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    told = subprocess.run(
        [sys.executable, str(entry), "--help"], capture_output=True, text=True, check=True
    )
    assert "is a plugin: lightningd starts it" in told.stderr


def test_requirements_install_this_project() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["."]
