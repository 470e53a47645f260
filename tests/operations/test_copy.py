"""Copies between the formats: the same history, or nothing that looks like a backup."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.model.change import FOREIGN_KEYS_OFF, FOREIGN_KEYS_ON, Change
from cln_backup.model.errors import AlreadyExists, Damaged, NotFound, StorageError
from cln_backup.operations.copy import copy
from tests.histories import append, image, payment, payments, started_node, told_by

if TYPE_CHECKING:
    from pathlib import Path

KEY = "?key-file={}/key"
TARGETS = ("file://{}/copy", "dir://{}/copy", "dir://{}/copy" + KEY)


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "key").write_bytes(bytes(range(32)))
    url = f"file://{tmp_path}/source"
    create_backend(url, None)
    append(url, [*started_node(), *payments(4, 60)])
    return url


@pytest.mark.parametrize("target", TARGETS)
def test_copy_that_fails_leaves_nothing_that_looks_like_a_backup(
    target: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = target.format(tmp_path, tmp_path)
    for step in ("_fill", "_digest_of"):
        with monkeypatch.context() as patched:
            whole = getattr(sys.modules[copy.__module__], step)

            def cut(*arguments: object, whole: object = whole) -> bytes:
                assert callable(whole)
                whole(*arguments)
                raise StorageError("the disk is full")

            patched.setattr(sys.modules[copy.__module__], step, cut)
            with pytest.raises(StorageError):
                copy(source, url)
        with pytest.raises(NotFound):
            open_reader(url)
        assert sorted(os.listdir(tmp_path)) == ["key", "source", "source.writer"]
    copy(source, url)
    assert told_by(url) == told_by(source)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("after_s", [0.15, 0.3, 0.5])
def test_copy_that_is_killed_leaves_nothing_that_looks_like_a_backup(
    target: str, after_s: float, source: str, tmp_path: Path
) -> None:
    append(source, payments(60, 800))
    url = target.format(tmp_path, tmp_path)
    script = (
        "import sys; from cln_backup.operations.copy import copy; "
        "print(flush=True); copy(*sys.argv[1:])"
    )
    process = subprocess.Popen([sys.executable, "-c", script, source, url], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    try:
        found = told_by(url)
    except (NotFound, Damaged):
        if (tmp_path / "copy").is_dir() and any(
            name.startswith("log-") for name in os.listdir(tmp_path / "copy")
        ):
            shutil.rmtree(tmp_path / "copy")
        copy(source, url)
        found = told_by(url)
    assert found == told_by(source)
    assert [name for name in os.listdir(tmp_path) if name.startswith(".copy-")] == []


@pytest.mark.parametrize("target", TARGETS)
def test_what_stands_at_the_target_is_left_as_it_is(
    target: str, source: str, tmp_path: Path
) -> None:
    url = target.format(tmp_path, tmp_path)
    create_backend(url, None)
    append(url, [*started_node(), payment(4, "of another node")])
    before = told_by(url)
    with pytest.raises(AlreadyExists):
        copy(source, url)
    assert told_by(url) == before


def test_copy_into_an_empty_directory_that_was_made_before(source: str, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    copy(source, f"dir://{tmp_path}/copy")
    assert told_by(f"dir://{tmp_path}/copy") == told_by(source)
    assert not [name for name in os.listdir(tmp_path / "copy") if name.startswith(".")]


STEPS = st.lists(
    st.sampled_from(["payment", "big", "off", "on", "snapshot", "later", "drop", "again"]),
    min_size=1,
    max_size=14,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(STEPS)
def test_every_history_goes_over_and_back_byte_for_byte(tmp_path: Path, steps: list[str]) -> None:
    place = tmp_path / "round"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / "key").write_bytes(bytes(range(32)))
    url = f"file://{place}/source"
    create_backend(url, None)
    append(url, started_node())
    backend = open_writer(url)
    for number, step in enumerate(steps):
        version = backend.version
        if step == "payment":
            backend.add_change(payment(version + 1, f"number {number}"))
        elif step == "big":
            noise = "".join(f"{n * 7919 % 65521:x}" for n in range(60_000))
            backend.add_change(payment(version + 1, noise))
        elif step in {"off", "on"}:
            rider = FOREIGN_KEYS_OFF if step == "off" else FOREIGN_KEYS_ON
            backend.add_change(Change(version, None, [rider]))
        elif step in {"snapshot", "later"}:
            at = version + 3 * (step == "later")
            backend.add_change(Change(at, image(f"{number} " * 9_000), None))
        elif step == "drop" and backend.standing.prev_version:
            backend.rewind()
        elif step == "again":
            backend.close()
            backend = open_writer(url)
    backend.close()
    there, back = f"dir://{place}/there?key-file={place}/key", f"file://{place}/back"
    copy(url, there)
    copy(there, back)
    assert told_by(there) == told_by(url) == told_by(back)
    entries = [(place / name).read_bytes()[512:] for name in ("source", "back")]
    assert entries[0] == entries[1]
