"""A promotion that kills itself at one step: `python -m tests.operations.promoter URL DIR NUMBER`.

The steps are the calls of `fsio` that change something, and each statement that the replica's
database is asked to run, from the fence on: before it, nothing but the replica is changed. It says
the label of the step, or `done` when there were fewer.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import apsw

from cln_backup.backends.events import ignore
from cln_backup.operations.promote import promote
from cln_backup.storage import fsio
from tests.disasters.disk import LABELLED

if TYPE_CHECKING:
    from collections.abc import Callable


class _Clock:
    """Counts the steps down to the last one."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.runs = False

    def begin(self, said: str) -> None:
        self.runs = self.runs or said.startswith("Fencing")

    def tick(self, label: str) -> None:
        self.left -= self.runs
        if self.left == 0 and self.runs:
            print(label, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    def lethal(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, op: str, **options: Any) -> Any:
            self.tick(op)
            return function(*args, op=op, **options)

        return call

    def watch(self, connection: apsw.Connection) -> None:
        def before(_cursor: object, statement: str, _bindings: object) -> bool:
            if not statement.startswith(("SELECT", "PRAGMA integrity", "PRAGMA foreign")):
                self.tick(statement.strip()[:40])
            return True

        connection.exec_trace = before


def main() -> None:
    url, directory, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    clock = _Clock(number)
    for label in LABELLED:
        setattr(fsio, label, clock.lethal(getattr(fsio, label)))
    apsw.connection_hooks.append(clock.watch)
    promote(url, directory, clock.begin, is_original=True, on_event=ignore)
    print("done", flush=True)


if __name__ == "__main__":
    main()
