"""An `init` that is stopped anywhere takes away what it made, and nothing else."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend
from cln_backup.model.change import Change
from cln_backup.model.errors import AlreadyExists, BackupError, Interrupted, StorageError
from cln_backup.storage import directories, fsio
from tests.format2.small import KINDS, SNAPSHOT, url_of
from tests.histories import append, payments, told_by

if TYPE_CHECKING:
    from pathlib import Path

_STEPS = {
    "names": directories,
    "open_lock": fsio,
    "write_at": fsio,
    "sync": fsio,
    "publish": fsio,
    "make": directories,
}


class _StopAt:
    """Stops at one call of a step; the others are made as they are."""

    def __init__(self, step: str, number: int, error: BackupError) -> None:
        self._real = getattr(_STEPS[step], step)
        self._left = number
        self._error = error

    def __call__(self, *arguments: object, **options: object) -> object:
        self._left -= 1
        if self._left == 0:
            raise self._error
        return self._real(*arguments, **options)


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("step", _STEPS)
@pytest.mark.parametrize("error", [Interrupted("Stopped."), StorageError("Too many open files")])
@pytest.mark.parametrize("kind", KINDS)
def test_backup_that_stands_there_is_left_whole(
    kind: str, error: BackupError, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while `init` looked what is in the directory: the first base was removed."""
    url = url_of(kind, tmp_path)
    create_backend(url, Change(1, SNAPSHOT, None))
    append(url, payments(2, 9))
    before = _contents(tmp_path / "node")
    with monkeypatch.context() as patched, contextlib.suppress(type(error), AlreadyExists):
        patched.setattr(_STEPS[step], step, _StopAt(step, 1, error))
        create_backend(url, None)
    assert _contents(tmp_path / "node") == before
    assert len(told_by(url)) == 8


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("step", _STEPS)
def test_what_was_begun_is_taken_away(
    step: str, empty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, place = url_of("encrypted", tmp_path), tmp_path / "node"
    if empty:
        place.mkdir()
    number = 0
    made = False
    while not made:
        number += 1
        with monkeypatch.context() as patched, contextlib.suppress(Interrupted):
            patched.setattr(_STEPS[step], step, _StopAt(step, number, Interrupted("Stopped.")))
            create_backend(url, None)
            made = True
        if not made:
            assert place.exists() == empty
            assert not empty or set(_contents(place)) <= {"backup.writer"}
    assert told_by(url) == []
