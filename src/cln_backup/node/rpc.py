"""Requests to lightningd's RPC socket, with and without waiting for the answer."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_ANSWER_BYTES = 1 << 24


class Request:
    """One request; readable when some of the answer has arrived.

    Never wait for an answer while lightningd may be in `db_write`: it waits for this process.
    """

    def __init__(
        self, rpc_path: str, method: str, params: Mapping[str, object] | None = None
    ) -> None:
        """Sends the request. Raises `OSError`."""
        request = {
            "jsonrpc": "2.0",
            "id": f"cln-backup:{method}",
            "method": method,
            "params": params or {},
        }
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._said = b""
        try:
            # Relative to the network directory, since a socket's path has at most 107 bytes.
            self._socket.connect(min(rpc_path, os.path.relpath(rpc_path), key=len))
            self._socket.sendall(json.dumps(request).encode())
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        """Becomes readable when some of the answer has arrived."""
        return self._socket.fileno()

    def answer(self) -> Any | None:  # noqa: ANN401 - any JSON value
        """Reads more; returns the answer when it is complete, before that `None`.

        Raises:
            ConnectionError: no answer will come.
        """
        data = self._socket.recv(1 << 16)
        self._said += data
        if not data or len(self._said) > _MAX_ANSWER_BYTES:
            raise ConnectionResetError("lightningd closed its RPC connection")
        try:
            return json.loads(self._said.decode("utf-8", "replace"))
        except ValueError:
            return None

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()


class Refused(Exception):
    """lightningd answered a request with an error.

    Attributes:
        code: JSON-RPC's; -32601 for an unknown command.
    """

    def __init__(self, code: object, message: object) -> None:
        super().__init__(str(message))
        self.code = code


UNKNOWN_COMMAND = -32601


def ask(
    rpc_path: str, method: str, params: Mapping[str, object] | None = None, *, timeout_s: float
) -> Any:  # noqa: ANN401 - any JSON value
    """Makes one request and waits for its result. Not for the plugin: see `Request`.

    Raises:
        Refused: lightningd answered with an error.
        TimeoutError: no answer came in time.
        OSError: there is no node, or it ended.
    """
    until = time.monotonic() + timeout_s
    request = Request(rpc_path, method, params)
    try:
        answer = None
        while answer is None:
            left_s = until - time.monotonic()
            if left_s <= 0 or not select.select([request], [], [], left_s)[0]:
                raise TimeoutError(f"lightningd did not answer {method} in {timeout_s:.0f} s")
            answer = request.answer()
    finally:
        request.close()
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict):
        raise Refused(error.get("code"), error.get("message"))
    return answer.get("result") if isinstance(answer, dict) else None


class _Config(msgspec.Struct):
    """One entry of `listconfigs`, as far as it is used here."""

    values_str: list[str] = []
    plugin: str | None = None


def is_important(listconfigs: object, program: str, option: str) -> bool:
    """Whether this plugin is loaded as important, by lightningd's answer to `listconfigs`.

    Args:
        listconfigs: the whole answer.
        program: this plugin's path, for releases of lightningd that do not name it.
        option: one that this plugin registers and that has a default: its entry names the plugin
            as lightningd knows it, which is a wrapper's path if there is one.
    """
    try:
        configs = listconfigs["result"]["configs"]  # type: ignore[index]
        important = msgspec.convert(configs["important-plugin"], _Config).values_str
        ours = msgspec.convert(configs.get(option, {}), _Config).plugin or program
    except (KeyError, TypeError, msgspec.ValidationError):
        return False
    return os.path.realpath(ours) in map(os.path.realpath, important)
