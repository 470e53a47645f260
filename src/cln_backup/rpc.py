"""Asks lightningd something over its RPC socket, without waiting for the answer."""

from __future__ import annotations

import json
import os
import socket

import msgspec

_MAX_ANSWER_BYTES = 1 << 24


class Request:
    """One request; readable when some of the answer has come.

    No request may be waited for while lightningd may be in `db_write`: it would wait for us.
    """

    def __init__(self, rpc_path: str, method: str) -> None:
        """Sends the request. Raises `OSError`."""
        request = {"jsonrpc": "2.0", "id": f"cln-backup:{method}", "method": method, "params": {}}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._said = b""
        try:
            # Relative to the network directory, since a socket's path may have 107 bytes only.
            self._socket.connect(min(rpc_path, os.path.relpath(rpc_path), key=len))
            self._socket.sendall(json.dumps(request).encode())
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        """Becomes readable when some of the answer has come."""
        return self._socket.fileno()

    def is_important(self, program: str) -> bool | None:
        """Reads on; says whether `listconfigs` names the program as an important plugin.

        `None` while the answer is not complete. `True` where lightningd has gone: then there is
        nobody to be warned.
        """
        try:
            data = self._socket.recv(1 << 16)
        except ConnectionError:
            return True
        self._said += data
        if not data or len(self._said) > _MAX_ANSWER_BYTES:
            return True
        try:
            said = json.loads(self._said.decode("utf-8", "replace"))
        except ValueError:
            return None
        try:
            configured = said["result"]["configs"]["important-plugin"]["values_str"]
            paths = msgspec.convert(configured, list[str])
        except (KeyError, TypeError, msgspec.ValidationError):
            return False
        ours = os.path.realpath(program)
        return any(os.path.realpath(path) == ours for path in paths)

    def close(self) -> None:
        """Lets go of the socket."""
        self._socket.close()
