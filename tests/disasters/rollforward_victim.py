"""A process that rolls a database forward, and kills itself at one step of it.

`python -m tests.disasters.rollforward_victim DIRECTORY NUMBER` dies before the call of that number
by which `fsio` or SQLite changes a file. It prints the label of each step up to that one, and
`done` if it had fewer steps.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import apsw

from cln_backup.operations.rollforward import roll_forward
from cln_backup.storage import directories, fsio
from tests.disasters.disk import LABELLED

if TYPE_CHECKING:
    from collections.abc import Callable


_USUAL = "unix"
"""The name of SQLite's own file access."""


class _Clock:
    """Counts the steps."""

    def __init__(self, fatal: int) -> None:
        self._steps = 0
        self._fatal = fatal

    def step(self, label: str) -> None:
        self._steps += 1
        print(label, flush=True)
        if self._steps == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def lethal(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, op: str, **options: Any) -> Any:
            self.step(f"{function.__name__}: {op}")
            return function(*args, op=op, **options)

        return call


class _Vfs(apsw.VFS):
    """SQLite's file access, with each change to the node's database and its journals a step."""

    def __init__(self, clock: _Clock, database: str) -> None:
        self.clock, self.database = clock, database
        super().__init__("lethal", _USUAL, makedefault=True)

    def label(self, name: object) -> str | None:
        path = str(name)
        return path[len(self.database) :] or "database" if path.startswith(self.database) else None

    def xOpen(  # noqa: N802 - SQLite's name
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        return _File(self, self.label(path), name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        label = self.label(filename)
        if label is not None:
            self.clock.step(f"SQLite deletes {label}")
        super().xDelete(filename, syncdir)
        if label is not None:
            self.clock.step(f"SQLite has deleted {label}")


class _File(apsw.VFSFile):
    def __init__(
        self, vfs: _Vfs, label: str | None, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> None:
        super().__init__(_USUAL, name, flags)
        self._label = label
        self._step = vfs.clock.step

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if self._label is not None:
            self._step(f"SQLite writes {self._label}")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._label is not None:
            self._step(f"SQLite syncs {self._label}")
        super().xSync(flags)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        if self._label is not None:
            self._step(f"SQLite truncates {self._label}")
        super().xTruncate(size)


def main() -> None:
    directory, number = sys.argv[1], int(sys.argv[2])
    clock = _Clock(number)
    vfs = _Vfs(clock, os.path.join(directory, "lightningd.sqlite3"))
    for label in LABELLED:
        setattr(fsio, label, clock.lethal(getattr(fsio, label)))
    directories.make = clock.lethal(directories.make)
    roll_forward(directory)
    print("done", flush=True)
    vfs.unregister()


if __name__ == "__main__":
    main()
