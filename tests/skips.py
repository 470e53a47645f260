"""In CI, a skip of a test that CI could run is a failure; this plugin of pytest makes it one.

Wherever the environment variable CI is set, a test may be skipped only for a reason of this list.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.soak import SOAK

if TYPE_CHECKING:
    from collections.abc import Generator

# The beginnings of reasons, each with the reason why CI may not be able to run such a test.
ALLOWED = {
    # There is nothing to test: a kind of backup that has no such thing.
    "does not apply: ": True,
    # The unpacked source archive has no history.
    "not a git checkout": True,
    # Another project's program, which is not on every machine.
    "CLN_BACKUP_INCUMBENT names no checkout": not os.environ.get("CLN_BACKUP_INCUMBENT"),
    # Recordings that are too large for the repository.
    "CLN_BACKUP_CAPTURES is not set": not os.environ.get("CLN_BACKUP_CAPTURES"),
    # Minutes, and 15 GB of disk.
    "CLN_BACKUP_SOAK is not set": not SOAK,
    # .ci/packages could not install them.
    "Chromium or its driver is not installed": not (
        shutil.which("chromium") and shutil.which("chromedriver")
    ),
    "promtool is not installed": shutil.which("promtool") is None,
    # Some kernels, and some containers.
    "this machine has no overlay file system": True,
    # Mounts, namespaces and files of other users.
    "needs root": os.geteuid() != 0,
}


def is_allowed(reason: str) -> bool:
    """Whether a test may be skipped for this reason in CI."""
    return any(reason.startswith(start) for start, holds in ALLOWED.items() if holds)


def _judge(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not os.environ.get("CI") or report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = said.removeprefix("Skipped: ")
    if not is_allowed(reason):
        report.outcome = "failed"
        report.longrepr = (
            f"Skipped in CI, which must run it: {reason}\n"
            "Give CI what the test needs, or add the reason to the list in tests/skips.py."
        )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judges the skip of a test."""
    report = yield
    _judge(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Judges the skip of a whole module."""
    report = yield
    _judge(report)
    return report
