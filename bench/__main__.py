"""`python -m bench`: prints each measure beside what it has to reach."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time

from bench import (
    cold,
    databases,
    directory,
    following,
    growth,
    healing,
    inside,
    long_run,
    looks,
    measures,
    object_stores,
    restoring,
    socket,
)

_DATA = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "data")


def main() -> None:
    """Runs the measures and prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", help="run the measures whose name contains this")
    parser.add_argument("--directory", help="where to work (on the disk to be measured)")
    options = parser.parse_args()
    captures = os.environ.get("CLN_BACKUP_CAPTURES")
    capture = os.path.join(_DATA, "captures", "small", "router.jsonl.xz")
    if captures is not None:
        capture = os.path.join(captures, "payments600", "payee.jsonl.xz")
    rows: list[measures.Row] = []
    if not options.json:
        print(f"stream: {'/'.join(capture.split('/')[-2:])}; {time.strftime('%Y-%m-%d')}\n")
        print(f"{'measure':<52}{'value':>14}{'to reach':>14}")
    for measure in (
        *cold.ALL,
        *inside.ALL,
        *measures.ALL,
        *directory.ALL,
        *looks.ALL,
        *following.ALL,
        *growth.ALL,
        *healing.ALL,
        *long_run.ALL,
        *restoring.ALL,
        *socket.ALL,
        *databases.ALL,
        *object_stores.ALL,
    ):
        if options.only is not None and options.only not in measure.__name__:
            continue
        place = tempfile.mkdtemp(prefix="bench-", dir=options.directory)
        try:
            for row in measure(place, capture):
                rows.append(row)
                if not options.json:
                    print(f"{row.name:<52}{row.value:>14}{row.to_reach:>14}", flush=True)
        finally:
            shutil.rmtree(place)
    if options.json:
        print(json.dumps([row._asdict() for row in rows]))


if __name__ == "__main__":
    main()
