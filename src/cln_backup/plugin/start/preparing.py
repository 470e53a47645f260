"""The process that prepares a snapshot: `python -m cln_backup.plugin.start.preparing`."""

from __future__ import annotations

import time

from cln_backup.backends import place_at
from cln_backup.model.errors import Discontinuity
from cln_backup.operations.proven import proven_copy
from cln_backup.plugin.start.messages import Prepare, Prepared
from cln_backup.process.parent import Parent, serve
from cln_backup.replay.replica import node_id_of


def _run(asked: Prepare, parent: Parent[Prepared]) -> None:
    until = time.monotonic() + asked.timeout_s
    with (
        place_at(asked.url).open_reader(timeout_s=asked.timeout_s) as reader,
        proven_copy(
            reader,
            asked.database,
            asked.replica_dir,
            head_in_doubt=asked.head_in_doubt,
            alarmed=asked.alarmed,
            until=until,
        ) as copy,
    ):
        if copy.version != asked.version or node_id_of(copy.path) != asked.node_id:
            raise Discontinuity(
                f"A copy of {asked.database} is at version {copy.version}, but the node waits at "
                f"{asked.version}, or it is another node's: another program writes to it."
            )
        parent.say(Prepared(copy.path))
        parent.next()  # comes when the parent has used it, or has ended


if __name__ == "__main__":
    serve(_run, Prepare)
