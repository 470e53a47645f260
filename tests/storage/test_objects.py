"""The guarantees of every object store, and those of the one in a directory."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from cln_backup.model.errors import AlreadyExists, StorageError
from cln_backup.storage import fsio
from cln_backup.storage.local_objects import LocalObjects
from cln_backup.storage.objects import NAME_CHARACTERS, Objects
from tests.disasters.disk import Recorder
from tests.small_disk import fill, small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ROUNDS = 100
_PIECES = [b"one", b"", b"two" * 300, b"end"]
_WHOLE = b"".join(_PIECES)


class _ByRange(LocalObjects):
    """Read as a store in a network is: by one request for each part."""

    def open(self, name: str, *, op: str, anew: bool = False) -> Any:
        return Objects.open(self, name, op=op, anew=anew)


STORES = [LocalObjects, _ByRange]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.fixture(params=STORES)
def objects(request: pytest.FixtureRequest, place: Path) -> Objects:
    store: Objects = request.param(str(place))
    return store


def _put(objects: Objects, name: str = "log-1", content: bytes = b"content") -> None:
    objects.put_new(name, "test", [content], op="put")


def _content(objects: Objects, name: str) -> bytes:
    return objects.get(name, 0, 1 << 20)


def test_what_is_put_is_listed_and_read_at_once(objects: Objects) -> None:
    for number, name in enumerate(("log-2", "base-1", "log-1", "log-10")):
        objects.put_new(name, "test", _PIECES, op="put")
        assert name in objects.list()
        status = objects.status(name)
        assert status is not None
        assert status.size_bytes == len(_WHOLE)
        assert status.stored_at > 0
        assert _content(objects, name) == _WHOLE
        assert len(objects.list()) == number + 1
    assert objects.list() == ["base-1", "log-1", "log-10", "log-2"]
    assert objects.list("log-") == ["log-1", "log-10", "log-2"]
    assert objects.list("none") == []


def test_object_without_content(objects: Objects) -> None:
    objects.put_new("empty", "test", [], op="put")
    assert _content(objects, "empty") == b""
    with objects.open("empty", op="open") as source:
        assert source.size_bytes() == 0


def test_object_is_never_replaced(objects: Objects) -> None:
    _put(objects, content=b"first")
    with pytest.raises(AlreadyExists):
        _put(objects, content=b"second")
    assert _content(objects, "log-1") == b"first"
    assert objects.list() == ["log-1"]
    assert objects.prepared() == []


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 3, b"012"), (7, 3, b"789"), (7, 4, b"789"), (10, 1, b""), (99, 5, b""), (2, 0, b"")],
)
def test_ranges(objects: Objects, offset: int, length: int, expected: bytes) -> None:
    _put(objects, content=b"0123456789")
    assert objects.get("log-1", offset, length) == expected
    with objects.open("log-1", op="open", anew=True) as source:
        assert source.size_bytes() == 10
        assert source.read_at(offset, length) == expected
        source.close()


def test_object_that_is_not_there(objects: Objects) -> None:
    assert objects.status("log-1") is None
    with pytest.raises(StorageError):
        objects.get("log-1", 0, 1)
    with pytest.raises(StorageError), objects.open("log-1", op="open") as source:
        source.read_at(0, 1)


def test_delete_is_idempotent(objects: Objects) -> None:
    _put(objects)
    for _ in range(2):
        objects.delete("log-1", op="delete")
        assert objects.list() == []
    _put(objects, content=b"again")
    assert _content(objects, "log-1") == b"again"


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "/etc/passwd", "../up", "a b", "a\n", "ä", "a\x00b", "-x",
     "x" * (NAME_CHARACTERS + 1)],
)  # fmt: skip
def test_no_object_has_an_invalid_name(objects: Objects, name: str) -> None:
    for refused in (
        lambda: _put(objects, name),
        lambda: objects.get(name, 0, 1),
        lambda: objects.status(name),
        lambda: objects.delete(name, op="delete"),
        lambda: objects.open(name, op="open"),
        lambda: objects.publish(objects.prepare("test", [b"x"]), name, op="publish"),
    ):
        with pytest.raises(ValueError, match="invalid object name"):
            refused()
    assert objects.list() == []


def test_longest_name(objects: Objects) -> None:
    name = "x" * NAME_CHARACTERS
    _put(objects, name)
    assert objects.list() == [name]


def test_prepared_object_has_no_name_until_it_is_published(objects: Objects) -> None:
    prepared = objects.prepare("snapshot", _PIECES)
    other = objects.prepare("snapshot", [b"other"])
    assert objects.list() == []
    assert sorted(objects.prepared()) == sorted(objects.prepared("snapshot"))
    assert set(objects.prepared()) == {prepared, other}
    assert objects.prepared("compaction") == []
    assert _content(objects, prepared) == _WHOLE  # so that it can be checked before
    objects.publish(prepared, "base-1", op="publish")
    assert objects.list() == ["base-1"]
    assert _content(objects, "base-1") == _WHOLE
    with pytest.raises(AlreadyExists):
        objects.publish(other, "base-1", op="publish")
    for in_steps in (True, False):
        objects.discard(other, in_steps=in_steps)
        assert objects.prepared() == []
        objects.discard(other, in_steps=in_steps)
        other = objects.prepare("snapshot", [b"other"])
    objects.discard(other)
    assert _content(objects, "base-1") == _WHOLE


def test_content_that_fails_leaves_nothing(objects: Objects) -> None:
    def content() -> Iterator[bytes]:
        yield b"x"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        objects.put_new("log-1", "test", content(), op="put")
    assert objects.list() == objects.prepared() == []


@pytest.mark.parametrize("links", [[], ["no-links"]], ids=["links", "no links"])
def test_of_two_processes_exactly_one_wins_each_name(place: Path, links: list[str]) -> None:
    ends = socket.socketpair()
    command = [sys.executable, "-m", "tests.storage.racer", str(place), str(_ROUNDS)]
    racers = [
        subprocess.Popen(
            [*command, name, str(end.fileno()), *links],
            pass_fds=[end.fileno()],
            stdout=subprocess.PIPE,
        )
        for name, end in zip(("one", "other"), ends, strict=True)
    ]
    for end in ends:
        end.close()
    one, other = (json.loads(racer.communicate()[0]) for racer in racers)
    assert sorted([*one, *other]) == [*range(_ROUNDS)]
    objects = LocalObjects(str(place))
    for winners, content in ((one, b"one"), (other, b"other")):
        assert {_content(objects, f"race-{number}") for number in winners} <= {content}
    assert len(objects.list("race-")) == _ROUNDS
    assert objects.prepared() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_process_that_is_killed_in_the_middle_leaves_nothing_under_the_name(place: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from cln_backup.storage.local_objects import LocalObjects\n"
        "def content():\n"
        "    yield b'x'\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "LocalObjects(sys.argv[1]).put_new('log-1', 'test', content(), op='put')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(place)], check=False)
    assert done.returncode == -signal.SIGKILL
    objects = LocalObjects(str(place))
    assert objects.list() == []
    (left,) = objects.prepared()
    objects.discard(left)
    _put(objects)
    assert os.listdir(place) == ["log-1"]


def test_whatever_is_cut_the_name_leads_to_the_whole_object_or_to_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = LocalObjects(str(place))
    with monkeypatch.context() as patch:
        recorder = Recorder(place)
        recorder.start(patch)
        objects.put_new("base-1", "test", _PIECES, op="put")
    steps = len(recorder.steps)
    for after in range(steps + 1):
        for files in (recorder.killed(after), *recorder.power_cuts(after)):
            assert files.get("base-1") in (None, _WHOLE)
    assert all(files == {"base-1": _WHOLE} for files in recorder.power_cuts(steps))


def test_delete_is_durable(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = LocalObjects(str(place))
    _put(objects)
    with monkeypatch.context() as patch:
        recorder = Recorder(place)
        recorder.start(patch)
        objects.delete("log-1", op="delete")
    assert all(files == {} for files in recorder.power_cuts(len(recorder.steps)))


def test_full_disk_leaves_nothing_and_later_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        objects = LocalObjects(str(disk))
        other = fill(disk)
        with pytest.raises(StorageError, match="Free space"):
            objects.put_new("base-1", "test", [bytes(4096)], op="put")
        assert objects.list() == ["other"]
        assert objects.prepared() == []
        other.unlink()
        objects.put_new("base-1", "test", [bytes(4096)], op="put")
        assert objects.list() == ["base-1"]


@pytest.mark.parametrize("failing", ["fdatasync", "fsync"])
@pytest.mark.parametrize("withdraws", [True, False])
def test_name_that_may_not_be_durable_is_withdrawn_unless_others_go_by_it(
    failing: str, withdraws: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    objects = LocalObjects(str(place))
    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(StorageError, match="Input/output error"):
        objects.put_new("log-1", "test", [b"x"], op="claim", withdraws=withdraws)
    named = failing == "fsync" and not withdraws
    assert objects.list() == (["log-1"] if named else [])
    assert objects.prepared() == []


def test_files_are_private(place: Path) -> None:
    before = os.umask(0)
    try:
        _put(LocalObjects(str(place)))
        LocalObjects(str(place)).prepare("test", [b"x"])
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()} == {0o600}


def test_other_files_in_the_directory_are_no_objects(place: Path) -> None:
    for name in (".spool", "with space", "building.test-1", "key-1"):
        (place / name).write_bytes(b"x")
    assert LocalObjects(str(place)).list() == ["key-1"]
    assert LocalObjects(str(place)).prepared() == ["building.test-1"]
    assert LocalObjects(str(place), building="adding").prepared() == []


def test_only_a_regular_file_is_read(place: Path) -> None:
    os.mkfifo(place / "base-1")
    with pytest.raises(StorageError, match="FIFO"):
        _content(LocalObjects(str(place)), "base-1")


def test_object_that_is_held_is_not_removed(place: Path) -> None:
    objects = LocalObjects(str(place))
    _put(objects)
    source = objects.open_held("log-1", op="open")
    assert source is not None
    with source:
        assert not objects.delete_unheld("log-1", op="remove")
        assert objects.list() == ["log-1"]
    assert objects.delete_unheld("log-1", op="remove")
    assert objects.list() == []


def test_source_outlives_the_name(place: Path) -> None:
    objects = LocalObjects(str(place))
    _put(objects)
    with objects.open("log-1", op="open") as source:
        objects.delete("log-1", op="remove")
        assert source.read_at(0, 99) == b"content"


def test_object_that_lost_its_name_while_it_was_opened_is_not_held(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = LocalObjects(str(place))
    _put(objects)
    opened = fsio.open_existing

    def open_late(path: str, *, writable: bool, op: str) -> int:
        fd = opened(path, writable=writable, op=op)
        with suppress(FileNotFoundError):
            os.unlink(path)
        return fd

    monkeypatch.setattr(fsio, "open_existing", open_late)
    assert objects.open_held("log-1", op="open") is None


GUARANTEES = [
    test_what_is_put_is_listed_and_read_at_once,
    test_object_without_content,
    test_object_is_never_replaced,
    test_object_that_is_not_there,
    test_delete_is_idempotent,
    test_longest_name,
    test_prepared_object_has_no_name_until_it_is_published,
    test_content_that_fails_leaves_nothing,
]
"""Of every store, for those that are not in a directory."""
