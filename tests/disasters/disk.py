"""The states in which a crash can leave files that were being written.

`Recorder` writes down each call by which `storage.fsio` changes a file or a directory, in order,
under the label of the step. From that record, `killed` says what is there when the process dies
between two calls, and `power_cuts` what may be there when the machine dies: of the bytes that
were not synced, any sectors may be missing, and of the names that were not synced, any.
"""

from __future__ import annotations

import itertools
import os
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cln_backup.storage import fsio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import pytest

T = TypeVar("T")

SECTOR_BYTES = 512
_ALL_SUBSETS_OF = 8
_SAMPLES = 60

Files = dict[str, bytes]
"""Names in a directory, and what the files hold."""


class Write(NamedTuple):
    file: int
    offset: int
    data: bytes


class Truncate(NamedTuple):
    file: int
    length: int


class Sync(NamedTuple):
    file: int


class Name(NamedTuple):
    """A name was given to a file, or with `None` taken away."""

    name: str
    file: int | None


class Rename(NamedTuple):
    name: str
    to: str


class SyncNames(NamedTuple):
    pass


Effect = Write | Truncate | Sync | Name | Rename | SyncNames


class Step(NamedTuple):
    """One call of the operating system."""

    op: str
    effect: Effect


class _RecordingOs:
    """The `os` module, as `fsio` sees it while it is recorded."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        existed = os.path.lexists(path)
        fd = os.open(path, flags, mode)
        if flags & os.O_CREAT and not existed:
            self._recorder.created(path, fd)
        elif flags & os.O_TRUNC:
            self._recorder.note(Truncate(self._recorder.file(fd), 0), fd)
        return fd

    def pwritev(self, fd: int, buffers: Sequence[bytes], offset: int) -> int:
        written = os.pwritev(fd, buffers, offset)
        data = b"".join(buffers)[:written]
        self._recorder.note(Write(self._recorder.file(fd), offset, data), fd)
        return written

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        written = os.pwrite(fd, data, offset)
        self._recorder.note(Write(self._recorder.file(fd), offset, bytes(data[:written])), fd)
        return written

    def ftruncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)
        self._recorder.note(Truncate(self._recorder.file(fd), length), fd)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)
        self._recorder.note(Sync(self._recorder.file(fd)), fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)
        self._recorder.names_synced()

    def link(self, source: str, target: str) -> None:
        os.link(source, target)
        self._recorder.linked(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)
        self._recorder.renamed_or_removed(path, None)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)
        self._recorder.renamed_or_removed(source, target)

    def replace(self, source: str, target: str) -> None:
        os.replace(source, target)
        self._recorder.renamed_or_removed(source, target)


LABELLED = (
    "create", "open_lock", "write_at", "sync", "truncate", "sync_directory", "publish", "replace",
    "keep", "remove", "write_file",
)  # fmt: skip


@dataclass
class Recorder:
    """The files of one directory, and what is done to them; lock files do not count."""

    directory: Path
    steps: list[Step] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)
    contents: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._op = ""
        self._files: dict[int, int] = {}
        for path in sorted(self.directory.iterdir()):
            if path.is_file() and not self._ignored(str(path)):
                self.names[path.name] = self._new_file(path.stat().st_ino, path.read_bytes())

    def _new_file(self, inode: int, content: bytes = b"") -> int:
        self.contents.append(content)
        self._files[inode] = len(self.contents) - 1
        return self._files[inode]

    @staticmethod
    def _ignored(path: str) -> bool:
        return path.endswith(".writer")

    def start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fsio, "os", _RecordingOs(self))
        for name in LABELLED:
            monkeypatch.setattr(fsio, name, self._labelled(getattr(fsio, name)))

    def _labelled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, op: str, **options: Any) -> Any:
            outer, self._op = self._op, op
            try:
                return function(*args, op=op, **options)
            finally:
                self._op = outer or op

        return call

    def file(self, fd: int) -> int:
        return self._files.get(os.fstat(fd).st_ino, -1)

    def note(self, effect: Write | Truncate | Sync, fd: int) -> None:
        if self.file(fd) >= 0:
            self.steps.append(Step(self._op, effect))

    def created(self, path: str, fd: int) -> None:
        if not self._ignored(path):
            file = self._new_file(os.fstat(fd).st_ino)
            self.steps.append(Step(self._op, Name(os.path.basename(path), file)))

    def linked(self, source: str, target: str) -> None:
        file = self._files[os.stat(source).st_ino]
        self.steps.append(Step(self._op, Name(os.path.basename(target), file)))

    def renamed_or_removed(self, path: str, target: str | None) -> None:
        name = os.path.basename(path)
        if target is None:
            self.steps.append(Step(self._op, Name(name, None)))
        else:
            self.steps.append(Step(self._op, Rename(name, os.path.basename(target))))

    def names_synced(self) -> None:
        self.steps.append(Step(self._op, SyncNames()))

    def killed(self, after: int) -> Files:
        """The files when the process dies after so many steps."""
        disk = _Disk(self, after)
        contents = [_applied(disk.durable[n], disk.pending[n]) for n in range(len(disk.durable))]
        return _files(_renamed(disk.names, disk.pending_names), contents)

    def power_cuts(self, after: int, seed: int = 0) -> Iterator[Files]:
        """The possible files when the machine loses power after so many steps."""
        disk = _Disk(self, after)
        choices = random.Random(f"{seed} {after}")
        touched = [number for number, pending in enumerate(disk.pending) if pending]
        variants = [list(_cuts(disk.durable[n], disk.pending[n], choices)) for n in touched]
        combined: Iterator[tuple[bytes, ...]] = itertools.product(*variants)
        if len(touched) > 1:
            every = list(combined)
            combined = iter(choices.sample(every, min(len(every), 4 * _SAMPLES)))
        for contents in combined:
            all_contents = list(disk.durable)
            for number, content in zip(touched, contents, strict=True):
                all_contents[number] = content
            for names in _subsets(disk.pending_names, choices):
                yield _files(_renamed(disk.names, names), all_contents)


class _Disk:
    """The durable state after so many steps, and the writes that are not durable yet."""

    def __init__(self, recorder: Recorder, after: int) -> None:
        self.durable = list(recorder.contents)
        self.pending: list[list[Write | Truncate]] = [[] for _ in self.durable]
        self.names = dict(recorder.names)
        self.pending_names: list[Name | Rename] = []
        for _, effect in recorder.steps[:after]:
            if isinstance(effect, Write | Truncate):
                self.pending[effect.file].append(effect)
            elif isinstance(effect, Sync):
                number = effect.file
                self.durable[number] = _applied(self.durable[number], self.pending[number])
                self.pending[number] = []
            elif isinstance(effect, SyncNames):
                self.names = _renamed(self.names, self.pending_names)
                self.pending_names = []
            else:
                self.pending_names.append(effect)


def _applied(content: bytes, effects: Sequence[Write | Truncate]) -> bytes:
    data = bytearray(content)
    for effect in effects:
        if isinstance(effect, Truncate):
            del data[effect.length :]
            data.extend(bytes(effect.length - len(data)))
        elif effect.data:
            data.extend(bytes(max(0, effect.offset - len(data))))
            data[effect.offset : effect.offset + len(effect.data)] = effect.data
    return bytes(data)


def _renamed(names: dict[str, int], effects: Sequence[Name | Rename]) -> dict[str, int]:
    names = dict(names)
    for effect in effects:
        if isinstance(effect, Rename):
            if effect.name in names:
                names[effect.to] = names.pop(effect.name)
        elif effect.file is None:
            names.pop(effect.name, None)
        else:
            names[effect.name] = effect.file
    return names


def _files(names: dict[str, int], contents: Sequence[bytes]) -> Files:
    return {name: contents[number] for name, number in names.items()}


def _cuts(
    content: bytes, pending: Sequence[Write | Truncate], choices: random.Random
) -> Iterator[bytes]:
    """The contents that a file can have when not all that is pending reached the disk."""
    sectors = [piece for effect in pending for piece in _sectors(effect)]
    full = len(_applied(content, pending))
    for kept in _subsets(sectors, choices):
        found = _applied(content, kept)
        yield found
        if any(isinstance(effect, Truncate) for effect in pending):
            continue
        # The length is kept apart from the bytes: missing ones at the end may read as zeros.
        ends = range((len(found) // SECTOR_BYTES + 1) * SECTOR_BYTES, full, SECTOR_BYTES)
        for length in {*ends[:2], *ends[-1:], full}:
            if length > len(found):
                yield found.ljust(length, b"\x00")


def _sectors(effect: Write | Truncate) -> Iterator[Write | Truncate]:
    if isinstance(effect, Truncate):
        yield effect
        return
    start, end = effect.offset, effect.offset + len(effect.data)
    while start < end:
        stop = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
        yield Write(effect.file, start, effect.data[start - effect.offset : stop - effect.offset])
        start = stop


def _subsets(items: Sequence[T], choices: random.Random) -> Iterator[list[T]]:
    """Every subset of a few; of many, those that matter most and some by chance."""
    count = len(items)
    if count <= _ALL_SUBSETS_OF:
        for mask in range(1 << count):
            yield [item for n, item in enumerate(items) if mask >> n & 1]
        return
    for n in range(count + 1):
        yield list(items[:n])
        yield list(items[n:])
    for n in range(count):
        yield [items[n]]
        yield [*items[:n], *items[n + 1 :]]
    for _ in range(_SAMPLES):
        share = choices.random()
        yield [item for item in items if choices.random() < share]


def place(files: Files, directory: Path) -> None:
    """Puts files into an empty directory."""
    for name, content in files.items():
        (directory / name).write_bytes(content)
