from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests import captured
from tests.in_memory import memory_path
from tests.skips import pytest_make_collect_report, pytest_runtest_makereport

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["memory_path", "pytest_make_collect_report", "pytest_runtest_makereport"]

_CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
# The same examples in every run, so that a failure can be reproduced.
settings.register_profile("ci", deadline=None, derandomize=True, suppress_health_check=_CHECKS)
settings.register_profile(
    "search", deadline=None, max_examples=2_000, suppress_health_check=_CHECKS
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Whatever the tests start keeps their priority: at the lowest one, a machine that is busy with
# other tests would not run it for minutes.
_EAGER = os.path.join(os.path.dirname(__file__), "eager")
if _EAGER not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_EAGER, os.environ.get("PYTHONPATH"))))

# A shell starts what it runs in the background with these ignored, and so would be what the tests
# start: a program that ignores them from its start continues to do so.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _name in (signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_name) is signal.SIG_IGN:
        signal.signal(_name, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:  # noqa: ARG001
    """Two workers for each processor: many tests wait for a disk, or for a limit to pass."""
    return 2 * (os.cpu_count() or 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Has a worker take over what another one has left: a few tests take much longer than most."""
    from xdist.scheduler import WorkStealingScheduling  # type: ignore[import-untyped]

    is_default = config.getvalue("dist") == "load"
    return WorkStealingScheduling(config, log) if is_default else None


@pytest.fixture
def large_captures() -> Path:
    """The recordings that are too large for this repository."""
    path = captured.large()
    if path is None:
        named = os.environ.get("CLN_BACKUP_CAPTURES")
        assert not named, f"CLN_BACKUP_CAPTURES names no directory: {named}"
        pytest.skip("CLN_BACKUP_CAPTURES is not set")
    return path


_LONG = (
    "tests/packaging/",
    "tests/docs/test_site.py",
    "tests/socket/test_whole_way.py",
    "tests/socket/test_silence.py",
)
"""They come first: at the end, all others would wait for the worker that runs them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts long tests first; the order of the others stays as it is."""
    items.sort(key=lambda item: not item.nodeid.startswith(_LONG))
