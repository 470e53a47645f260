"""Starts a program that answers `db_write`, and times its answers as a node sees them."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BIN = os.path.join(ROOT, ".venv", "bin")
CLI = os.path.join(BIN, "backup-cli")
PLUGIN = os.path.join(BIN, "cln-backup")


class Program:
    """A process that reads requests from a pipe and answers through another."""

    def __init__(self, command: list[str], directory: str) -> None:
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            command, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in = self._process.stdin.fileno()
        self._out = self._process.stdout.fileno()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, request: bytes) -> None:
        """Writes a request without waiting for its answer."""
        while request:
            request = request[os.write(self._in, request) :]

    def answer_time_s(self, request: bytes) -> float:
        """Sends a `db_write` and waits until it may be committed."""
        started = time.perf_counter()
        self.send(request)
        said = b""
        while b'"result":{"result":"continue"}' not in said or not said.endswith(b"\n\n"):
            data = os.read(self._out, 1 << 16)
            assert data, "the program has ended"
            said += data
            assert b'"result":"halt"' not in said, said
        self.said = said
        return time.perf_counter() - started

    def init(self, directory: str, options: dict[str, str] | None = None) -> None:
        """Tells a plugin that the node is up."""
        configuration = {"lightning-dir": directory, "rpc-file": "lightning-rpc", "startup": True}
        params = {"options": options or {}, "configuration": configuration}
        init = {"jsonrpc": "2.0", "id": "cln:init#0", "method": "init", "params": params}
        self.send(json.dumps(init).encode() + b"\n\n")
        self.wait_for(b'"id":"cln:init#0"')

    def ask(self, method: str) -> dict[str, Any]:
        """Calls one of the plugin's commands; returns its result."""
        request = {"jsonrpc": "2.0", "id": method, "method": method, "params": {}}
        self.send(json.dumps(request).encode() + b"\n\n")
        said = self.wait_for(f'"id":"{method}"'.encode(), whole=True)
        for text in said.split(b"\n\n"):
            if f'"id":"{method}"'.encode() in text:
                result: dict[str, Any] = json.loads(text)["result"]
                return result
        raise AssertionError(said)

    def wait_for(self, sign: bytes, *, whole: bool = False) -> bytes:
        """Reads until the sign has come; with `whole`, up to the end of a message."""
        said = b""
        while sign not in said or (whole and not said.endswith(b"\n\n")):
            data = os.read(self._out, 1 << 16)
            assert data, "the program has ended"
            said += data
        return said

    def close(self) -> None:
        """Closes the pipe and waits for the end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def children(pid: int) -> list[int]:
    """The process ids of a process's children."""
    found: list[int] = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
            found += map(int, file.read().split())
    return found


def processor_time_s(pid: int) -> float:
    """The time of the living threads of a process so far, in user and kernel mode."""
    total_ns = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
            total_ns += int(file.read().split()[0])
    return total_ns / 1e9


def request(number: int, version: int, writes: Iterable[str]) -> bytes:
    """A call of `db_write` as lightningd writes it."""
    params = json.dumps(
        {"data_version": version, "writes": list(writes)},
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return (
        f'{{"jsonrpc":"2.0","id":"cln:db_write#{number}","method":"db_write","params":{params}}}\n\n'
    ).encode()


def calls(capture: str) -> Iterator[dict[str, Any]]:
    """The calls of a recording."""
    with lzma.open(capture, "rt", encoding="utf-8") as lines:
        for line in lines:
            call = json.loads(line)
            if "data_version" in call:
                yield call


def new_backup(directory: str, *, url: str = "file://{}/backup") -> str:
    """Sets a backup up for a network directory; returns its URL."""
    os.makedirs(directory, exist_ok=True)
    url = url.format(directory)
    subprocess.run(
        [CLI, "init", "--lightning-dir", directory, url], check=True, capture_output=True
    )
    return url
