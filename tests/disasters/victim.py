"""A process that kills itself, for good, at one step of what it does.

`python -m tests.disasters.victim DIRECTORY KIND SCENARIO NUMBER` prepares a scenario, then does it
and dies at the call of that number which `fsio` makes to change something. It says the label of
that step, or `done` when there was none.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cln_backup.backends import open_reader
from cln_backup.operations.restore import restore
from cln_backup.storage import fsio
from tests.disasters.disk import LABELLED
from tests.disasters.places import url_in
from tests.disasters.scenarios import State, all_scenarios

if TYPE_CHECKING:
    from collections.abc import Callable


class _Clock:
    """Counts the steps down to the last one."""

    def __init__(self, left: int) -> None:
        self.left = left

    def lethal(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, op: str, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                print(op, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, op=op, **options)

        return call


def _answered(_state: State) -> None:
    """Here it does not matter what was answered."""


def main() -> None:
    directory, kind, name, number = Path(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4])
    is_restore = name == "restores"
    scenario = all_scenarios(kind)["drops a transaction" if is_restore else name]
    scenario.prepare(directory)
    clock = _Clock(number)
    for label in LABELLED:
        setattr(fsio, label, clock.lethal(getattr(fsio, label)))
    if is_restore:
        with open_reader(url_in(directory, kind)) as backend:
            restore(backend, str(directory / "restored.sqlite3"))
    else:
        scenario.act(directory, _answered)
    print("done", flush=True)


if __name__ == "__main__":
    main()
