"""Real proxies between client and server: one that cuts, delays and halves, and one for SOCKS5."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UP, DOWN = 0, 1


class Cut(Exception):
    """The connection is to be cut now."""


class Proxy:
    """Forwards connections to a port; `plan` says for each what becomes of its bytes.

    `plan(number)` is asked at each connection and gives a function of direction and data, which
    returns what to send on, or raises `Cut` with what is still to be sent before.
    """

    def __init__(self, port: int, plan: Callable[[int], Callable[[int, bytes], bytes]]) -> None:
        self._target = port
        self._plan = plan
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.connections = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                treat = self._plan(self.connections)
                self.connections += 1
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                for pair in ((client, server, UP), (server, client, DOWN)):
                    pair[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    thread = threading.Thread(target=_pump, args=(*pair, treat), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join()


def _pump(
    source: socket.socket,
    target: socket.socket,
    direction: int,
    treat: Callable[[int, bytes], bytes],
) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(treat(direction, data))
    except Cut as cut:
        with contextlib.suppress(OSError):
            target.sendall(cut.args[0])
    except OSError:
        pass
    for sock in (source, target):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
    if direction == UP:
        return
    time.sleep(0)
    source.close()
    target.close()


def cut_after(
    direction: int, length: int, *, first: int = 0
) -> Callable[[int], Callable[[int, bytes], bytes]]:
    """Cuts the connection `first` once so many bytes went in a direction; leaves others whole."""

    def plan(number: int) -> Callable[[int, bytes], bytes]:
        left = length if number == first else 1 << 62

        def treat(towards: int, data: bytes) -> bytes:
            nonlocal left
            if towards != direction:
                return data
            if len(data) >= left:
                raise Cut(data[:left])
            left -= len(data)
            return data

        return treat

    return plan


@contextlib.contextmanager
def proxy(port: int, plan: Callable[[int], Callable[[int, bytes], bytes]]) -> Iterator[Proxy]:
    between = Proxy(port, plan)
    try:
        yield between
    finally:
        between.close()


class Socks5:
    """A SOCKS5 proxy without a password that knows names of its own, such as onion names."""

    def __init__(self, names: dict[str, int], host: str = "127.0.0.1") -> None:
        self._names = names
        self.asked: list[tuple[int, str, int]] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listening = socket.create_server((host, 0), family=family)
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, struct.error):
            version, count = client.recv(2)
            client.recv(count)
            assert version == 5
            client.sendall(b"\x05\x00")
            _, command, _, kind = client.recv(4)
            assert command == 1
            host = self._host(client, kind)
            (port,) = struct.unpack("!H", client.recv(2))
            self.asked.append((kind, host, port))
            target = self._names.get(host, port if kind != 3 else 0)
            try:
                server = socket.create_connection(("127.0.0.1", target))
            except OSError:
                client.sendall(b"\x05\x04\x00\x01" + bytes(6))
                return
            client.sendall(b"\x05\x00\x00\x01" + bytes(6))
            other = threading.Thread(
                target=_pump, args=(server, client, DOWN, lambda _, data: data), daemon=True
            )
            other.start()
            _pump(client, server, UP, lambda _, data: data)
            other.join()

    def _host(self, client: socket.socket, kind: int) -> str:
        if kind == 1:
            return socket.inet_ntop(socket.AF_INET, client.recv(4))
        if kind == 4:
            return socket.inet_ntop(socket.AF_INET6, client.recv(16))
        return client.recv(client.recv(1)[0]).decode()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
