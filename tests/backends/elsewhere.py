"""A process that opens a backup for writing, and holds it until its input ends.

`python -m tests.backends.elsewhere URL` says `open`, or the error.
"""

from __future__ import annotations

import sys

from cln_backup.backends import open_writer
from cln_backup.model.errors import BackupError


def main() -> None:
    try:
        backend = open_writer(sys.argv[1])
    except BackupError as error:
        print(type(error).__name__, error, flush=True)
    else:
        print("open", flush=True)
        sys.stdin.read()
        del backend  # it is not closed, as when a process just ends


if __name__ == "__main__":
    main()
