"""Runs a command of `backup-cli` again and again, and stops it at another step each time.

`python -m tests.operations.stopper COMMAND NUMBER` prints one line of JSON for each run. The steps
are calls of `fsio` and `directories`. A signal comes before a step, or before that and all later
ones: an impatient operator presses Ctrl-C more than once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cln_backup.cli import commands as cli
from cln_backup.operations.initialize import initialize
from cln_backup.storage import directories, fsio, interruption
from tests.histories import append, build_database, payments, started_node

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = {
    fsio: (
        "chunks_at", "create", "create_beside", "keep", "open_existing", "open_lock",
        "preallocate", "publish", "read_at", "remove", "replace", "size_bytes", "sync",
        "sync_directory", "truncate", "write_at", "write_file",
    ),
    directories: ("locked", "make", "names", "remove_empty"),
}  # fmt: skip
COMMANDS = (
    "init dir", "init encrypted", "init file", "snapshot dir", "snapshot file", "compact dir",
    "compact file", "copy dir", "copy file", "key", "restore dir", "restore file",
)  # fmt: skip


def _prepare(place: Path, command: str) -> list[str]:
    """A node and what else the command needs; returns the command's arguments."""
    node = place / "node"
    node.mkdir()
    history = [*started_node(), *payments(4, 9)]
    database = build_database(node / "lightningd.sqlite3", history)
    (node / "hsm_secret").write_bytes(bytes(range(32)))
    (place / "backups").mkdir()
    (place / "new").mkdir()
    name, _, kind = command.partition(" ")
    url = f"file://{place}/backups/node.bkp" if kind == "file" else f"dir://{place}/backups/node"
    if name == "init":
        encrypt = ["--encrypt"] if kind == "encrypted" else []
        return ["init", *encrypt, "--lightning-dir", str(node), url]
    done = initialize(url, str(node), encrypt=name == "key")
    if name == "key":
        url, key = done.backend_url.partition("?")[0], str(node / "backup.key")
        return ["key", "add", "--key-file", key, "--new-key-file", str(place / "new/key"), url]
    missed = payments(9, 14)
    append(url, missed)
    if name == "snapshot":
        database.unlink()
        build_database(database, [*history, *missed, *payments(14, 16)])
        return ["snapshot", "--lightning-dir", str(node)]
    if name == "compact":
        return ["compact", url]
    if name == "copy":
        to = "dir" if kind == "file" else "file"
        return ["copy", url, f"{to}://{place}/new/copy"]
    return ["restore", url, str(place / "new")]


class _Steps:
    """Counts the calls of `fsio`, and sends this process a signal before some."""

    def __init__(self, stop_at: int, number: int, *, more: bool) -> None:
        self.count = 0
        self._stop_at = stop_at
        self._number = number
        self._more = more

    def watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self._stop_at or (self._more and self.count > self._stop_at > 0):
                os.kill(os.getpid(), self._number)
            return function(*arguments, **options)

        return call


def _tree(place: Path) -> dict[str, str]:
    """The files, except locks, and segments and spares without contents."""
    found = {}
    for path in sorted(place.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        if path.name.endswith(".writer") or path.name.startswith("spare"):
            continue
        if path.name.startswith("log-") and not any(content):
            continue
        found[str(path.relative_to(place))] = hashlib.sha256(content).hexdigest()
    return found


def _run(arguments: list[str], place: Path, steps: _Steps) -> tuple[int, str, int]:
    """Runs the command in a process of its own: exit code, what it complained of, its steps."""
    told = place.with_suffix(".told")
    pid = os.fork()
    if pid == 0:
        fd = os.open(told, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(fd, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        for module, names in STEPS.items():
            for name in names:
                setattr(module, name, steps.watched(getattr(module, name)))
        interruption.state.finished = False  # as `_prepare` left it
        sys.argv = ["backup-cli", *arguments]
        code = 1
        with contextlib.suppress(BaseException):
            try:
                cli.main()
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
        sys.stderr.flush()
        os.pwrite(fd, b"%08d" % steps.count, 1 << 16)
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    data = told.read_bytes()
    told.unlink()
    said = data[: 1 << 16].rstrip(b"\x00").decode()
    return os.waitstatus_to_exitcode(status), said, int(data[1 << 16 :] or b"0")


def main() -> None:
    """Prints what came of each run."""
    command, wanted = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory(dir=sys.argv[3]) as directory:
        place = Path(directory) / "place"
        place.mkdir()
        arguments = _prepare(place, command)
        as_it_was = Path(directory) / "as-it-was"
        shutil.copytree(place, as_it_was)
        before = _tree(place)
        code, said, total = _run(arguments, place, _Steps(0, 0, more=False))
        assert code == 0, said
        after = set(_tree(place))
        choices = random.Random(command)
        moments = range(1, total + 1)
        for moment in sorted(choices.sample(moments, min(wanted, total))):
            shutil.rmtree(place)
            shutil.copytree(as_it_was, place)
            number = (signal.SIGINT, signal.SIGTERM)[moment % 2]
            steps = _Steps(moment, number, more=bool(moment % 4 // 2))
            code, said, _ = _run(arguments, place, steps)
            found = _tree(place)
            result = {
                "moment": moment,
                "code": code,
                "said": said,
                "as_it_was": found == before,
                "finished": set(found) == after,
                "found": sorted(set(found) - set(before)),
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
