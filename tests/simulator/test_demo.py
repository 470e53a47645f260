"""The demo that the README promises."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import pytest

import demo.__main__ as demo
from simulator import client
from tests.in_memory import directory_with_room
from tests.soak import SOAK


@pytest.fixture(autouse=True)
def _in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that other tests use too, a compaction in the database takes many seconds."""
    monkeypatch.setattr(tempfile, "tempdir", directory_with_room())


def test_demo_waits_for_its_compaction_on_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    call = client.call

    def late(directory: str, method: str, params: object = None, **options: float) -> Any:
        if method == "backup-compact":
            time.sleep(2)  # by then the node has made its last call
        return call(directory, method, params, **options)

    monkeypatch.setattr(client, "call", late)
    assert demo.main() == 0, capfd.readouterr().out
    shown = capfd.readouterr().out
    assert "differences                         none" in shown
    assert "dropped and set aside, at version   199, 449" in shown


@pytest.mark.timeout(600)
@pytest.mark.skipif(not SOAK, reason="CLN_BACKUP_SOAK is not set")
def test_demo_in_a_database_whose_standby_takes_over(capfd: pytest.CaptureFixture[str]) -> None:
    assert demo.main("postgres") == 0, capfd.readouterr().out
    shown = capfd.readouterr().out
    assert "differences                         none" in shown
    assert "on the disk of the server alone" in shown  # of the standby that was promoted


@pytest.mark.timeout(600)
@pytest.mark.skipif(not SOAK, reason="CLN_BACKUP_SOAK is not set")
@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ("s3", "The backup in s3://tests/demo can be reached again"),
        ("sealed", "The backup server 127.0.0.1"),
    ],
)
def test_demo_in_an_engine_that_is_killed(
    engine: str, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(engine) == 0, capfd.readouterr().out
    shown = capfd.readouterr().out
    assert "differences                         none" in shown
    assert says in shown


def test_unknown_engine_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert demo.main("mongo") == 2
    assert (
        "Unknown engine 'mongo'. The engines are dir, postgres, s3, sealed"
        in capfd.readouterr().err
    )
