"""A node that writes all the time: python -m tests.replay.writing_node URL DATABASE PIECES.

It counts the pieces of a comparison (a number that another process writes to the file PIECES) which
each of its statements found in its way after the first one, and prints the largest count when its
standard input ends. Those that passed while the system let this process wait do not count.
"""

from __future__ import annotations

import mmap
import select
import sys
import time
from pathlib import Path

import apsw

from cln_backup.backends import open_writer
from tests.histories import transaction


def main(url: str, path: str, pieces_path: str) -> None:
    most = 0
    node = apsw.Connection(path)
    with Path(pieces_path).open("rb") as file, open_writer(url) as backup:
        pieces = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
        version = backup.version
        while not select.select([sys.stdin], [], [], 0)[0]:
            version += 1
            change = transaction(version, f"UPDATE vars SET intval = {version} WHERE name = 'sum'")
            backup.add_change(change)
            for statement in ("BEGIN IMMEDIATE", *(change.transaction or ()), "COMMIT"):
                most = max(most, _waits(node, statement, pieces))
    print(version, most)


def _waits(node: apsw.Connection, statement: str, pieces: mmap.mmap) -> int:
    met: set[bytes] = set()
    while True:
        try:
            node.execute(statement)
        except apsw.BusyError:
            met.add(pieces[:])
            time.sleep(0.0005)
        else:
            return max(0, len(met) - 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
