"""Runs the simulated node with the recording plugin, and finds the recordings of real nodes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator import client
from tests import programs
from tests.waiting import WAIT_S, wait_until

ROOT = Path(__file__).resolve().parents[2]
CAPTURES = ROOT / "tests" / "data" / "captures"
PLUGIN = Path(__file__).with_name("recording_plugin.py")


@dataclass
class Ended:
    """A node's process that has ended."""

    code: int
    stderr: str
    report: dict[str, Any]


class Setup:
    """A network directory and what was written down about it."""

    def __init__(self, base: Path) -> None:
        self.directory = base / "regtest"
        self.database = self.directory / "lightningd.sqlite3"
        self.pid_file = base / "lightningd-regtest.pid"
        self.log_file = self.directory / "lightningd.log"
        self._record = base / "record.jsonl"
        self._report = base / "report.json"

    def plugin(self, **arguments: object) -> str:
        """Return the plugin's command; underscores in names become hyphens."""
        words = [f"{name.replace('_', '-')}={value}" for name, value in arguments.items()]
        return shlex.join([sys.executable, str(PLUGIN), f"RECORD={self._record}", *words])

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a node and return at once."""
        return programs.start(
            *("simulator", self.directory, "--synchronous", "off", "--report", self._report),
            *arguments,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> Ended:
        """Run a node to its end."""
        return self.end(self.start(*arguments))

    def end(self, process: subprocess.Popen[str]) -> Ended:
        """Wait for a node to end."""
        _, stderr = process.communicate(timeout=WAIT_S)
        report = json.loads(self._report.read_text()) if self._report.exists() else {}
        return Ended(process.returncode, stderr, report)

    def messages(self, method: str | None = None) -> list[dict[str, Any]]:
        """Return what the plugin was told, perhaps only the messages of one method."""
        if not self._record.exists():
            return []
        entries = [json.loads(line) for line in self._record.read_text().splitlines()]
        return [entry for entry in entries if method is None or entry.get("method") == method]

    def versions(self) -> list[int]:
        """Return the data version of each call that reached the plugin."""
        return [message["params"]["data_version"] for message in self.messages("db_write")]

    def log(self) -> str:
        """Return the node's log."""
        return self.log_file.read_text()

    def forget(self) -> None:
        """Forget what the plugin was told."""
        self._record.unlink(missing_ok=True)

    def call(self, method: str, params: object = None) -> Any:
        """Make a request, as soon as there is a node to take it."""
        deadline_s = time.monotonic() + WAIT_S
        while True:
            try:
                return client.call(self.directory, method, params, timeout_s=WAIT_S)
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.02)

    def wait_for_calls(self, count: int) -> None:
        """Wait until a node has made this many calls."""
        wait_until(
            lambda: self.call("simulator")["next_call"] >= count, "the node makes no progress"
        )


def recordings(name: str) -> list[Path]:
    """Return the folders of recordings of one kind; large ones are where the environment says."""
    elsewhere = os.environ.get("CLN_BACKUP_CAPTURES")
    return sorted(Path(elsewhere, name).iterdir()) if elsewhere else []
