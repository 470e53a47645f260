"""One of two processes that store objects of the same names at the same time.

`python -m tests.storage.racer DIRECTORY ROUNDS CONTENT FD [no-links]`; FD is a socket to the other
one. With `no-links`, as on a file system without hard links.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys

from cln_backup.model.errors import AlreadyExists
from cln_backup.storage.local_objects import LocalObjects


def _no_links(_source: str, _target: str) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def main(directory: str, rounds: int, content: str, other: socket.socket) -> None:
    objects = LocalObjects(directory)
    won = []
    for number in range(rounds):
        other.sendall(b"!")  # both begin each round together
        assert other.recv(1) == b"!"
        try:
            objects.put_new(f"race-{number}", "race", [content.encode()], op="race")
        except AlreadyExists:
            continue
        won.append(number)
    print(json.dumps(won))


if __name__ == "__main__":
    if sys.argv[5:] == ["no-links"]:
        os.link = _no_links  # type: ignore[assignment]
    with socket.socket(fileno=int(sys.argv[4])) as other:
        main(sys.argv[1], int(sys.argv[2]), sys.argv[3], other)
