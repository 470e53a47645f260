"""A simulated node's home: its network directory, its backup, and what can be done with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from simulator import client, content
from tests import programs
from tests.waiting import WAIT_S, wait_for, wait_until

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PLUGIN = BIN / "cln-backup"
CAPTURES = ROOT / "tests" / "data" / "captures"
_WITHOUT_FOLLOWER = ("--option", "backup-follower=off")

KINDS = ("file", "dir", "dir-encrypted")
"""The kinds of backup that a node may have."""
DIRECTORIES = KINDS[1:]


class Home:
    """A network directory with a backup of some kind beside it.

    Its backup is followed only if it `follows`: elsewhere a follower would take as much time as
    all else, and the next start would do more where the follower was fast.
    """

    def __init__(self, base: Path, kind: str = "file", *, follows: bool = False) -> None:
        self.base = base
        self.kind = kind
        self.follows = follows
        self.directory = base / "regtest"
        self.directory.mkdir(parents=True)
        self.database = self.directory / "lightningd.sqlite3"
        self.backup = base / ("backup.dbak" if kind == "file" else "backup")
        self.url = f"{kind.partition('-')[0]}://{self.backup}"
        self.report = base / "report.json"
        self.plugin = PLUGIN
        self._node: subprocess.Popen[str] | None = None

    def cli(self, *arguments: str, code: int = 0) -> str:
        """Runs `backup-cli`; returns what it printed."""
        done = programs.run(*arguments)
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout + done.stderr

    def init(self, *options: str) -> None:
        """Makes the backup; from then on, `url` says what unlocks it, as `backup.lock` does."""
        encrypt = ("--encrypt",) if self.kind == "dir-encrypted" else ()
        self.cli("init", "--lightning-dir", str(self.directory), *encrypt, *options, self.url)
        self.url = json.loads((self.directory / "backup.lock").read_text())["backend_url"]

    def set_options(self, **fields: str) -> None:
        """Writes options into `backup.lock`."""
        lock = self.directory / "backup.lock"
        lock.write_text(json.dumps(json.loads(lock.read_text()) | fields))

    def files(self) -> list[Path]:
        """All files of the backup, and all that the plugin keeps in the node's directory."""
        in_backup = self.backup.iterdir() if self.backup.is_dir() else [self.backup]
        return [*in_backup, *self.directory.glob("backup.*")]

    def stored(self) -> dict[str, bytes]:
        """The contents of the backup, name by name, without files prepared for later."""
        if not self.backup.exists():
            return {}
        return {
            path.name: path.read_bytes()
            for path in (self.backup.iterdir() if self.backup.is_dir() else [self.backup])
            if not path.name.startswith("spare") and not path.name.endswith(".writer")
        }

    def command(self, *arguments: str, important: bool = True) -> list[str]:
        option = "--important-plugin" if important else "--plugin"
        return [
            *("simulator", str(self.directory)),
            # a crash at a sync needs one
            *("--synchronous", "full" if "in-commit" in " ".join(arguments) else "off"),
            *("--report", str(self.report), "--quiet"),
            *(option, str(self.plugin), *(() if self.follows else _WITHOUT_FOLLOWER), *arguments),
        ]

    def start(
        self, *arguments: str, important: bool = True, env: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Starts a node and returns at once."""
        self._node = programs.Program(
            self.command(*arguments, important=important),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | (env or {}),
        )
        return self._node

    def run(self, *arguments: str, important: bool = True, code: int | None = 0) -> dict[str, Any]:
        """Runs a node to its end; returns its report."""
        return self.end(self.start(*arguments, important=important), code=code)

    def end(self, node: subprocess.Popen[str], *, code: int | None = 0) -> dict[str, Any]:
        """Waits for a node's end; returns its report."""
        _, self.stderr = node.communicate(timeout=2 * WAIT_S)
        if code is not None:
            assert node.returncode == code, self.stderr
        report: dict[str, Any] = json.loads(self.report.read_text())
        return report

    def log(self) -> str:
        return (self.directory / "lightningd.log").read_text()

    def call(self, method: str, params: object = None) -> Any:
        """Makes a request, as soon as there is a node to take it."""
        deadline_s = time.monotonic() + WAIT_S
        while True:
            try:
                return client.call(self.directory, method, params, timeout_s=WAIT_S)
            except (FileNotFoundError, ConnectionRefusedError):
                assert self._node is None or self._node.poll() is None, self.log()
                assert time.monotonic() < deadline_s, "no node to call"
                time.sleep(0.02)

    def wait_for_calls(self, count: int) -> None:
        wait_until(
            lambda: self.call("simulator")["next_call"] >= count, "the node makes no progress"
        )

    def wait_for_version(self, version: int) -> None:
        wait_until(
            lambda: self.call("simulator")["data_version"] >= version, "the node makes no progress"
        )

    def restored(self) -> Path:
        """Restores the backup to a new file."""
        path = self.base / f"restored-{len(list(self.base.glob('restored-*')))}.sqlite3"
        self.cli("restore", self.url, str(path))
        return path

    def require_same(self, *databases: Path) -> None:
        """Restores, and compares with each database, statement for statement."""
        restored = self.restored()
        for database in databases:
            assert content.differences(restored, database) == []

    def dropped(self) -> list[str]:
        """The versions that were set aside."""
        found = (path.name.partition("dropped-")[2] for path in self.base.rglob("*dropped-*"))
        return sorted(name.lstrip("0") for name in found)


def processes_of(node: int) -> tuple[int, int]:
    """The process ids of a node's plugin worker and of its guard."""
    worker = int(_children(node)[0])
    return worker, int(_children(worker)[0])


def _children(pid: int) -> list[str]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return wait_for(lambda: children.read_text().split(), missing=f"Process {pid} has no children.")
