"""One of two processes that store objects of the same names at the same time.

`python -m tests.storage.racer DIRECTORY ROUNDS CONTENT FD`; FD is a socket to the other one.
"""

from __future__ import annotations

import json
import socket
import sys

from cln_backup.model.errors import AlreadyExists
from cln_backup.storage.local_objects import LocalObjects


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
    with socket.socket(fileno=int(sys.argv[4])) as other:
        main(sys.argv[1], int(sys.argv[2]), sys.argv[3], other)
