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

from cln_backup.backends import open_reader, open_writer
from cln_backup.backends.ticket import MoreNeeded
from cln_backup.compaction.from_replica import prepare
from cln_backup.operations.restore import restore
from cln_backup.replay.kept import KeptReplica
from cln_backup.storage import fsio
from tests.disasters.disk import LABELLED
from tests.disasters.places import url_in
from tests.disasters.scenarios import State, all_scenarios
from tests.histories import payment

if TYPE_CHECKING:
    from collections.abc import Callable


FROM_REPLICA = "compacts from its replica"


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


def _compact_from_replica(directory: Path, url: str) -> None:
    """A whole compaction, with the node's changes meanwhile, as the plugin and a follower do it."""
    replica = KeptReplica.open(f"{directory}.replica")
    with open_writer(url) as writer, open_reader(url) as reader, open_reader(url) as own:
        replica.catch_up(reader)
        staged = prepare(replica, own, lambda work: work())
        assert staged is not None
        writer.add_change(payment(writer.version + 1, "meanwhile"))
        ticket = own.prepare_more(staged.ticket)
        while isinstance(writer.take_over(ticket), MoreNeeded):
            ticket = own.prepare_more(ticket)
        reader.wait_for_more(0)
        replica.rebase(staged.base, reader)
        replica.catch_up(reader)
    replica.close()


def main() -> None:
    directory, kind, name, number = Path(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4])
    is_restore, from_replica = name == "restores", name == FROM_REPLICA
    scenario = all_scenarios(kind)[
        "drops a transaction" if is_restore else "a transaction" if from_replica else name
    ]
    scenario.prepare(directory)
    clock = _Clock(number)
    for label in LABELLED:
        setattr(fsio, label, clock.lethal(getattr(fsio, label)))
    if is_restore:
        with open_reader(url_in(directory, kind)) as backend:
            restore(backend, str(directory / "restored.sqlite3"))
    elif from_replica:
        _compact_from_replica(directory, url_in(directory, kind))
    else:
        scenario.act(directory, _answered)
    print("done", flush=True)


if __name__ == "__main__":
    main()
