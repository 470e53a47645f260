"""Talk to a node through its RPC socket, the simulated one or a real one."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from typing import Any

from simulator.rpc import RPC_FILE
from simulator.wire import MalformedError, MessageStream, encode

READ_BYTES = 1 << 16


class RpcError(Exception):
    """The node refused the request; `code` is its number."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def call(
    directory: str | os.PathLike[str],
    method: str,
    params: object = None,
    *,
    timeout_s: float | None = 300,
) -> Any:  # noqa: ANN401 - any JSON value
    """Make one request and return its result.

    Args:
        directory: the node's network directory, of any length.
        method: the command.
        params: an object or an array; none by default.
        timeout_s: how long to wait for each piece of the answer.

    Raises:
        RpcError: the node refused it.
        OSError: there is no node, or it went away, or it took too long.
    """
    # A socket's path may have some hundred bytes, so it is named through the directory.
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(f"/proc/self/fd/{directory_fd}/{RPC_FILE}")
            request = {"jsonrpc": "2.0", "id": "cli:1", "method": method, "params": params or {}}
            connection.sendall(encode(request) + b"\n\n")
            return _answer(connection)
    finally:
        os.close(directory_fd)


def _answer(connection: socket.socket) -> Any:  # noqa: ANN401
    stream = MessageStream()
    while True:
        chunk = connection.recv(READ_BYTES)
        if not chunk:
            raise ConnectionError("the node went away without an answer")
        stream.feed(chunk)
        try:
            while (message := stream.next()) is not None:
                if "error" in message:
                    raise RpcError(message["error"]["code"], message["error"]["message"])
                if "result" in message:
                    return message["result"]
        except MalformedError as error:
            raise ConnectionError(str(error)) from None


def main(arguments: list[str] | None = None) -> int:
    """Make one request from the command line; return 1 when it was refused, 2 without a node."""
    parser = argparse.ArgumentParser(prog="python -m simulator.client", description=__doc__)
    parser.add_argument("directory", metavar="DIR", help="the node's network directory")
    parser.add_argument("method", metavar="METHOD", help="for example getinfo or stop")
    parser.add_argument("params", metavar="JSON", nargs="?", default="{}", help="the parameters")
    options = parser.parse_args(arguments)
    try:
        result = call(options.directory, options.method, json.loads(options.params))
    except RpcError as error:
        sys.stderr.write(f"{error.code}: {error}\n")
        return 1
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(result, indent=3, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
