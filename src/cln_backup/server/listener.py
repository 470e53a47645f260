"""Accepts connections, within limits, and gives each a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

from cln_backup.server.admission import MAX_CONNECTIONS, is_loopback, why_refused
from cln_backup.server.connection import Connection
from cln_backup.server.conversation import GREETING_S, converse
from cln_backup.wire.channel import Channel

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence

    from cln_backup.server.node import Node

_log = logging.getLogger("cln_backup.server")

_STALL_S = 30.0
_STOP_S = 10.0
_PAUSE_S = 0.5
_STACK_BYTES = 512 << 10


def is_private(sock: socket.socket) -> bool:
    """Whether a listening socket can be reached from this machine only."""
    return sock.family == socket.AF_UNIX or is_loopback(sock.getsockname()[0])


class _Guest:
    """A socket that was accepted, and the connection on it after the TLS handshake."""

    def __init__(self, sock: socket.socket, host: str) -> None:
        self.sock = sock
        self.host = host
        self.connection: Connection | None = None

    @property
    def is_stranger(self) -> bool:
        """Whether it is unauthenticated."""
        return self.connection is None or self.connection.node is None


class Listener:
    """The server's sockets and connections."""

    def __init__(
        self,
        nodes: Mapping[str, Node],
        sockets: Sequence[socket.socket],
        tls: ssl.SSLContext | None,
        *,
        max_connections: int = MAX_CONNECTIONS,
        on_hup: Callable[[], None] | None = None,
    ) -> None:
        self._nodes = nodes
        self._sockets = sockets
        self._tls = tls
        self._lock = threading.Lock()
        self._most = max_connections
        self._on_hup = on_hup
        self._guests: dict[threading.Thread, _Guest] = {}
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def stop_on_signals(self) -> None:
        """Makes `run` return soon after a signal, whichever thread receives it.

        A Python handler is not enough: it waits for the main thread, which waits for sockets.
        """
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)

    def stop(self) -> None:
        """Makes `run` return soon."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._woken, bytes([signal.SIGTERM]))

    def run(self) -> None:
        """Accepts connections until `stop`; then finishes requests in progress, and closes all.

        At SIGHUP, calls `on_hup` in a thread of its own.
        """
        threading.stack_size(_STACK_BYTES)
        selector = selectors.DefaultSelector()
        selector.register(self._wake, selectors.EVENT_READ)
        for sock in self._sockets:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if self._wake in ready and self._told_to_stop():
                break
            for listening in ready:
                if isinstance(listening, socket.socket):
                    self._accept(listening)
        selector.close()
        for sock in self._sockets:
            sock.close()
        self._finish()

    def _told_to_stop(self) -> bool:
        orders = os.read(self._wake, 64)
        if signal.SIGHUP in orders and self._on_hup is not None:
            threading.Thread(target=self._on_hup, name="hup", daemon=True).start()
        return any(order != signal.SIGHUP for order in orders)

    def _accept(self, listening: socket.socket) -> None:
        try:
            sock, place = listening.accept()
        except BlockingIOError:  # gone again
            return
        except OSError as error:  # out of file descriptors or memory; the next attempt fails too
            _log.warning("Cannot accept a connection: %s", error)
            time.sleep(_PAUSE_S)
            return
        host, port = place[:2] if sock.family != socket.AF_UNIX else ("::1", 0)
        peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        with self._lock:
            guests = list(self._guests.values())
        strangers = [guest.host for guest in guests if guest.is_stranger]
        why = why_refused(host, strangers, len(guests), self._most)
        if why is not None:
            _log.warning("%s: closed: %s", peer, why)
            sock.close()
            return
        guest = _Guest(sock, host)
        thread = threading.Thread(target=self._serve, args=(guest, peer), name=peer, daemon=True)
        with self._lock:
            self._guests[thread] = guest
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread left
            _log.warning("%s: closed: %s", peer, error)
            sock.close()
            with self._lock:
                del self._guests[thread]

    def _serve(self, guest: _Guest, peer: str) -> None:
        sock = guest.sock
        try:
            if self._tls is not None:
                sock.settimeout(GREETING_S)
                sock = self._tls.wrap_socket(sock, server_side=True)
            channel = Channel(sock, stall_s=_STALL_S)
            local = is_loopback(guest.host)
            guest.connection = Connection(channel, peer, local=local)
            converse(guest.connection, self._nodes)
        except OSError as error:
            _log.warning("%s: closed: TLS handshake failed: %s", peer, error)
        finally:
            sock.close()
            with self._lock:
                del self._guests[threading.current_thread()]

    def _finish(self) -> None:
        with self._lock:
            guests = dict(self._guests)
        for guest in guests.values():
            if guest.connection is not None:
                guest.connection.finish()
        until = time.monotonic() + _STOP_S
        for thread, guest in guests.items():
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive() and guest.connection is not None:
                guest.connection.evict("closed: the server stops")  # it reads too slowly
        for node in self._nodes.values():
            node.close()

    def connections(self) -> int:
        """The number of open connections."""
        return len(self._guests)
