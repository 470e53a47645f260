"""A machine for the commands of a document: its paths, its node and its servers, in a directory."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from simulator import client
from tests import programs
from tests.documents import ROOT
from tests.waiting import WAIT_S, wait_for, wait_until

if TYPE_CHECKING:
    from tests.programs import Program

WORDS = f"{'abandon ' * 11}about"
ROUTER = ROOT / "tests" / "data" / "captures" / "small" / "router.jsonl.xz"

_PLUGIN = Path(sys.executable).with_name("cln-backup")
_PATHS = re.compile(r"(?<![\w.])/(mnt|srv|etc|var|tmp|the|home)(?=/)")
_UNITS = "/opt/cln-backup/share/cln-backup/systemd"
_SERVER = re.compile(r"(127\.0\.0\.1|backup\.example|friend\.example|\[::\]):8700")
_STAYS = {"server", "standby"}
"""Commands of `backup-cli` that run until they are stopped."""
_OF_THE_SYSTEM = {"chmod", "cp", "echo", "head", "mkdir", "mv", "rm", "touch"}


def _command(program: Program) -> str:
    assert isinstance(program.args, list)
    return str(program.args[1])


class Answer(NamedTuple):
    """How a command ended, and all that it said."""

    code: int
    said: str


class Sandbox:
    """The machine.

    Attributes:
        root: the directory in which its documented paths are.
        node: the node's network directory, `~/.lightning/bitcoin`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home" / "ln"
        self.node = self.home / ".lightning" / "bitcoin"
        self.database = self.node / "lightningd.sqlite3"
        self._port = "0"  # which the system chooses, until a server tells it
        self._fingerprint = self._token_hash = ""
        self._staying: list[Program] = []
        self._running: Program | None = None
        self._environ = os.environ | {
            "HOME": str(self.home),
            "COLUMNS": "400",
            "PYTHONUNBUFFERED": "1",  # both of its streams in order, as on a terminal
        }

    def place(self, template: Path) -> None:
        """Begins again, with these files."""
        self.close()
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(template, self.root)
        for other in ("user", "cln"):
            (self.root / "home" / other).symlink_to(self.home)

    def close(self) -> None:
        """Ends what was started."""
        self._stop_node()
        self._stop_staying()

    def here(self, text: str) -> str:
        """A text of the documents, for this machine."""
        text = _PATHS.sub(rf"{self.root}/\1", text)
        text = _SERVER.sub(f"127.0.0.1:{self._port}", text)
        text = text.replace(_UNITS, str(ROOT / "contrib" / "systemd"))  # it may be below /tmp
        return text.replace("fingerprint=…", f"fingerprint={self._fingerprint}")

    def documented(self, text: str) -> str:
        """A text of this machine, as the documents have it."""
        text = text.replace(str(_PLUGIN), "/opt/cln-backup/bin/cln-backup")
        return text.replace(str(self.root), "").replace(f"127.0.0.1:{self._port}", "127.0.0.1:8700")

    def path(self, documented: str) -> Path:
        """Where a documented path is."""
        return Path(self.here(documented))

    @property
    def url(self) -> str:
        """The backup, as the node's `backup.lock` has it."""
        return str(json.loads((self.node / "backup.lock").read_text())["backend_url"])

    def run(self, typed: str) -> Answer:
        """Does what a line of a document says."""
        if typed.startswith("backup-cli server"):
            self._port = "0"
        words = shlex.split(self.here(typed), comments=True)
        words = [re.sub(r"^~(?=/)", str(self.home), word) for word in words]
        said = ""
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            code, more = self._one(words[:end])
            said, words = said + more, words[end + 1 :]
            if code:
                return Answer(code, said)
        return Answer(0, said)

    def _one(self, words: list[str]) -> Answer:
        output = None
        if ">" in words:
            output = Path(words[words.index(">") + 1])
            words = words[: words.index(">")]
        program, *given = words
        if program == "backup-cli":
            answer = self._backup_cli(given)
        elif program == "lightning-cli":
            answer = self._lightning_cli(*given)
        elif program == "sqlite3":
            with closing(sqlite3.connect(given[0])) as database:
                answer = Answer(0, f"{database.execute(given[1]).fetchone()[0]}\n")
        else:
            assert program in _OF_THE_SYSTEM, program
            done = subprocess.run(words, capture_output=True, check=False, cwd=self.home)
            answer = Answer(done.returncode, (done.stderr or done.stdout).decode(errors="replace"))
            if output is not None:
                output.write_bytes(done.stdout)
        return answer

    def _backup_cli(self, given: list[str]) -> Answer:
        if given[0] in _STAYS and "--promote" not in given:
            return self._stay(given)
        if "--promote" in given:
            self._stop_staying("standby")
        typed = ""
        if "--words" in given:
            typed += f"{WORDS}\n\n"
        if "--new-passphrase" in given:
            typed += "secret of the operator\n" * 2
        with programs.start(
            *("backup-cli", *given), cwd=self.home, env=self._environ,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as process:  # fmt: skip
            said, _ = process.communicate(typed)
        if given[0] == "token":
            self._token_hash = said.strip()
        return Answer(process.returncode, said)

    def _stay(self, given: list[str]) -> Answer:
        """Starts a command that stays; returns as soon as it works."""
        self._stop_staying(given[0])
        log = self.root / f"{given[0]}.log"
        with log.open("w") as output:
            started = programs.start(
                *("backup-cli", *given), cwd=self.home, env=self._environ,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._staying.append(started)
        phrase = "Waiting for connection" if given[0] == "server" else "at data version"
        wait_until(
            lambda: phrase in log.read_text() or started.poll() is not None,
            log.read_text,
        )
        said = log.read_text()
        if found := re.search(r"fingerprint=(\w+)", said):
            self._fingerprint = found[1]
        if found := re.search(r"Waiting for connection on 127\.0\.0\.1:(\d+)", said):
            self._port = found[1]
        return Answer(0 if started.poll() is None else started.returncode, said)

    def list_nodes(self, nodes: str) -> None:
        """Gives the server a list of nodes, all with the token of this node, but for one."""
        listed = re.sub(r"\b[0-9a-f]{4}…", self._token_hash, nodes)
        listed = re.sub(
            rf"^(bob .*){self._token_hash}", rf"\g<1>{'0' * 64}", listed, flags=re.MULTILINE
        )
        self.path("/etc/cln-backup/nodes").write_text(f"{self.here(listed)}\n")
        log = self.root / "server.log"
        for server in self._of("server"):
            server.send_signal(signal.SIGHUP)
            wait_until(lambda: " are new or changed" in log.read_text(), log.read_text)

    def _of(self, command: str) -> list[Program]:
        return [each for each in self._staying if command in ("", _command(each))]

    def _stop_staying(self, command: str = "") -> None:
        """Ends what stays: all of it, or those of one command."""
        for started in reversed(self._of(command)):  # what asks a server before the server
            started.terminate()
            started.wait(WAIT_S)
        self._staying = [each for each in self._staying if each.poll() is None]

    def _lightning_cli(self, method: str, *given: str) -> Answer:
        """Makes a request to the node, which is started for it."""
        if method == "stop":
            self._stop_node()
            return Answer(0, "")
        if self._running is None:
            self._start_node()
        parameters = {}
        for each in given:
            name, _, value = each.partition("=")
            parameters[name] = {"true": True, "false": False}.get(value, value)
        return Answer(0, str(client.call(self.node, method, parameters, timeout_s=WAIT_S)))

    def _start_node(self) -> None:
        self._running = programs.start(
            *("simulator", self.node, "--capture", ROUTER, "--calls", 3, "--hold", "--quiet"),
            *("--synchronous", "off", "--important-plugin", _PLUGIN),
            cwd=ROOT, env=self._environ, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for(self._asks, missing="The node does not answer.")

    def _asks(self) -> Any:
        assert self._running is not None
        assert self._running.poll() is None, self._running.communicate()[1]
        try:
            return client.call(self.node, "backup-status", None, timeout_s=WAIT_S)
        except (FileNotFoundError, ConnectionRefusedError):
            return None

    def _stop_node(self) -> None:
        if self._running is not None:
            self._running.terminate()
            self._running.communicate(timeout=WAIT_S)
            self._running = None
