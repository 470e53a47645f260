"""Accepts connections, within limits, and gives each a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import threading
from typing import TYPE_CHECKING

from cln_backup.channel import Channel
from cln_backup.errors import StorageError
from cln_backup.server.conversation import GREETING_S, Conversation

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence

    from cln_backup.backends.socket_url import Address
    from cln_backup.server.served import Served

_log = logging.getLogger("cln_backup.server")

MAX_CONNECTIONS = 1024
MAX_STRANGERS = 256
"""How many connections may be open that have not yet said who they are."""

_STALL_S = 30.0
_STOP_S = 10.0
_BACKLOG = 256
_STACK_BYTES = 512 << 10


def bind(address: Address) -> list[socket.socket]:
    """Sockets that listen at an address; a name may have several.

    Raises:
        StorageError: the address is not this machine's, or is taken.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, place in found:
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(place)
            sock.listen(_BACKLOG)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise StorageError(f"Cannot listen at {address}: {error.strerror or error}.") from error
    return sockets


def is_loopback(sock: socket.socket) -> bool:
    """Whether a listening socket can be reached from this machine only."""
    host = sock.getsockname()[0] if sock.family != socket.AF_UNIX else "::1"
    return host == "::1" or host.startswith("127.")


class Listener:
    """The server's sockets and connections."""

    def __init__(
        self,
        nodes: Mapping[str, Served],
        sockets: Sequence[socket.socket],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._nodes = nodes
        self._sockets = sockets
        self._tls = tls
        self._lock = threading.Lock()
        self._threads: dict[threading.Thread, Conversation | None] = {}
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def stop_on_signals(self) -> None:
        """Has `run` return soon after a signal, whichever thread the system gave it to.

        A handler in Python would not do: it waits for the main thread, which waits for sockets.
        """
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)

    def stop(self) -> None:
        """Has `run` return soon."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._woken, b"s")

    def run(self) -> None:
        """Accepts until `stop`; then finishes what was begun, and closes everything."""
        threading.stack_size(_STACK_BYTES)
        selector = selectors.DefaultSelector()
        selector.register(self._wake, selectors.EVENT_READ)
        for sock in self._sockets:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if self._wake in ready:
                break
            for listening in ready:
                assert isinstance(listening, socket.socket)
                self._accept(listening)
        selector.close()
        for sock in self._sockets:
            sock.close()
        self._finish()

    def _accept(self, listening: socket.socket) -> None:
        try:
            sock, place = listening.accept()
        except OSError as error:  # gone again, or out of file descriptors
            _log.warning("Cannot accept a connection: %s", error)
            return
        host, port = place[:2]
        peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        with self._lock:
            open_now = len(self._threads)
            known = sum(1 for talk in self._threads.values() if talk and talk.greeted)
        if open_now >= MAX_CONNECTIONS or open_now - known >= MAX_STRANGERS:
            _log.warning("%s: closed: %d connections are open already", peer, open_now)
            sock.close()
            return
        local = host == "::1" or host.startswith("127.")
        thread = threading.Thread(
            target=self._serve, args=(sock, peer, local), name=peer, daemon=True
        )
        with self._lock:
            self._threads[thread] = None
        thread.start()

    def _serve(self, sock: socket.socket, peer: str, local: bool) -> None:
        try:
            if self._tls is not None:
                sock.settimeout(GREETING_S)
                sock = self._tls.wrap_socket(sock, server_side=True)
            talk = Conversation(Channel(sock, stall_s=_STALL_S), peer, self._nodes, local=local)
            with self._lock:
                self._threads[threading.current_thread()] = talk
            talk.run()
        except OSError as error:
            _log.warning("%s: closed: no TLS: %s", peer, error)
        finally:
            sock.close()
            with self._lock:
                del self._threads[threading.current_thread()]

    def _finish(self) -> None:
        with self._lock:
            open_now = dict(self._threads)
        for talk in open_now.values():
            if talk is not None:
                talk.finish()
        for thread in open_now:
            thread.join(_STOP_S)
        for node in self._nodes.values():
            node.close()

    def connections(self) -> int:
        """How many connections are open."""
        return len(self._threads)
