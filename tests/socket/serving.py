"""Servers for tests: one in this process with any number of nodes, and real ones to be killed."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from itertools import count
from typing import TYPE_CHECKING

from cln_backup.model.errors import StorageError
from cln_backup.server.command import _raise_file_limit as raise_file_limit
from cln_backup.server.listener import Listener
from cln_backup.server.nodes import node_of
from cln_backup.server.sealed import Sealed
from cln_backup.server.served import Served
from cln_backup.wire.address import Address
from cln_backup.wire.listening import bind
from tests import programs

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from cln_backup.server.node import Node

CLI = os.path.join(os.path.dirname(sys.executable), "backup-cli")
_numbers = count()


class ServerHere:
    """The server's own code on a real socket, in threads of this process."""

    def __init__(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        raise_file_limit()
        self.nodes: dict[str, Node] = {}
        sockets = bind(Address(host, 0))
        self.address = Address(*sockets[0].getsockname()[:2])
        self.listener = Listener(self.nodes, sockets, tls)
        self._thread = threading.Thread(target=self.listener.run, daemon=True)
        self._thread.start()

    def add(self, url: str, token_hash: str | None = None, *limits: str) -> str:
        """Serves one more backup; returns its URL here."""
        name = f"n{next(_numbers)}"
        self.nodes[name] = node = node_of(name, url, token_hash, limits)
        if isinstance(node, Sealed):
            node.open()
        return f"socket:{self.address}?node={name}"

    def served(self, url: str) -> Served:
        """The node with the backup at a URL of this server."""
        node = self.nodes[url.partition("?node=")[2]]
        assert isinstance(node, Served)
        return node

    def stop(self) -> None:
        self.listener.stop()
        self._thread.join()


@contextlib.contextmanager
def server_here(host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Iterator[ServerHere]:
    server = ServerHere(host, tls)
    try:
        yield server
    finally:
        server.stop()


def _free_port(host: str) -> int:
    """One that a server can have again later: the system gives none below 32768 to connections."""
    while True:
        port = random.randrange(20_000, 30_000)
        with contextlib.suppress(StorageError):
            for taken in bind(Address(host, port)):
                taken.close()
            return port


class ServerProcess:
    """`backup-cli server` as a process, which can be killed and started again at its port."""

    def __init__(
        self, *arguments: str, host: str = "127.0.0.1", port: int = 0, follows: bool = False
    ) -> None:
        """Only if it `follows` its backups does it keep replicas of them."""
        self._arguments = arguments if follows else ("--replica-dir", "off", *arguments)
        self._host = host
        self.port = port or _free_port(host)
        self.said: list[str] = []
        self.start()

    def start(self) -> None:
        address = str(Address(self._host, self.port))
        self.process = programs.start(
            *("backup-cli", "server", *self._arguments, address),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            found = re.search(r"Waiting for connection on .*:(\d+)", line)
            if found is not None:
                self.port = int(found[1])
                break
        else:
            raise AssertionError("".join(self.said))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.said += self.process.stdout

    @property
    def url(self) -> str:
        return f"socket:{Address(self._host, self.port)}"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.end()

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.end()

    def end(self) -> int:
        code = self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@contextlib.contextmanager
def server_process(
    *arguments: str, host: str = "127.0.0.1", follows: bool = False
) -> Iterator[ServerProcess]:
    server = ServerProcess(*arguments, host=host, follows=follows)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.terminate()


def unused_port() -> int:
    """A free port, for a server that cannot be asked which one it got."""
    with socket.create_server(("::", 0), family=socket.AF_INET6) as sock:
        return int(sock.getsockname()[1])
