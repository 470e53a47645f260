"""The node's RPC socket (`lightningd/jsonrpc.c`)."""

from __future__ import annotations

import os
import selectors
import socket
from typing import TYPE_CHECKING

from simulator.wire import SEPARATOR, MalformedError, Message, MessageStream, encode

if TYPE_CHECKING:
    from collections.abc import Callable

RPC_FILE = "lightning-rpc"
READ_BYTES = 1 << 16
FILE_MODE = 0o600

INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
PLUGIN_TERMINATED = -4


class Connection:
    """One client."""

    def __init__(self, server: RpcServer, client: socket.socket) -> None:
        self.notifications = False
        self.client = client
        self._server = server
        self._stream = MessageStream()
        self._waiting = b""
        self._last = False

    def result(self, request_id: object, value: object) -> None:
        """Answer a request."""
        self.send({"jsonrpc": "2.0", "id": request_id, "result": value})

    def error(self, request_id: object, code: int, text: str) -> None:
        """Refuse a request."""
        error = {"code": code, "message": text}
        self.send({"jsonrpc": "2.0", "id": request_id, "error": error})

    def send(self, message: Message) -> None:
        """Queue a message; it goes out while the node is idle."""
        self._waiting += encode(message) + SEPARATOR
        self._server.watch(self, writing=True)

    def serve(self, mask: int) -> None:
        """Write what is queued and take requests, without waiting for the client."""
        try:
            if mask & selectors.EVENT_WRITE and self._waiting:
                self._waiting = self._waiting[self.client.send(self._waiting) :]
            if self._last and not self._waiting:
                self._server.drop(self)
                return
            self._server.watch(self, writing=bool(self._waiting))
            if mask & selectors.EVENT_READ:
                self._take_requests()
        except OSError:
            self._server.drop(self)  # the client went away

    def finish(self) -> None:
        """Write what is queued, waiting a moment for the client, and hang up."""
        try:
            self.client.settimeout(1)
            self.client.sendall(self._waiting)
        except OSError:
            pass  # there is no client that waits for it
        self._server.drop(self)

    def _take_requests(self) -> None:
        chunk = self.client.recv(READ_BYTES)
        if not chunk:
            self._server.drop(self)
            return
        self._stream.feed(chunk)
        try:
            while (message := self._stream.next()) is not None:
                self._server.take(self, message)
        except MalformedError as error:
            self.error(None, INVALID_REQUEST, str(error))
            self._last = True


class RpcServer:
    """Listens on the socket and hands requests on.

    Args:
        path: the socket; a short one, since the system allows some hundred bytes.
        selector: watches the sockets; its keys' data are functions that take the event mask.
        take: is given each request together with the connection to answer on.
    """

    def __init__(
        self,
        path: str,
        selector: selectors.BaseSelector,
        take: Callable[[Connection, Message], None],
    ) -> None:
        self.take = take
        self._selector = selector
        self._connections: set[Connection] = set()
        self._listener: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if os.path.exists(path):
            os.unlink(path)
        umask = os.umask(0o777 ^ FILE_MODE)
        try:
            self._listener.bind(path)
        finally:
            os.umask(umask)
        self._listener.listen(128)
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def stop_listening(self) -> None:
        """Take no more clients; those that are connected stay."""
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def close(self) -> None:
        """Hang up on everyone. The socket's file stays, as lightningd leaves it."""
        self.stop_listening()
        for connection in list(self._connections):
            connection.finish()

    def watch(self, connection: Connection, *, writing: bool) -> None:
        """Say whether a connection has something to write."""
        if connection in self._connections:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
            if self._selector.get_key(connection.client).events != events:
                self._selector.modify(connection.client, events, connection.serve)

    def drop(self, connection: Connection) -> None:
        """Forget a connection."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._selector.unregister(connection.client)
            connection.client.close()

    def _accept(self, _mask: int) -> None:
        assert self._listener is not None
        client, _ = self._listener.accept()
        client.setblocking(False)
        connection = Connection(self, client)
        self._connections.add(connection)
        self._selector.register(client, selectors.EVENT_READ, connection.serve)
