"""Opens the backup as its one writer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cln_backup.backends import place_at
from cln_backup.model.errors import WriterConflict
from cln_backup.node.outside import lightningd_above

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.backends.contract import Writer
    from cln_backup.backends.events import OnEvent

_WAIT_FOR_WRITER_S = 10


def open_as_writer(
    url: str, node_id: str | None, log: Callable[[str], None], on_event: OnEvent
) -> Writer:
    """Opens the node's backup for writing; waits a short time for a writer that is ending.

    Raises:
        WriterConflict: another process is the writer, and did not end.
        BackupError: as `Place.open_writer` raises.
    """
    place = place_at(url)
    deadline_s = time.monotonic() + _WAIT_FOR_WRITER_S
    waiting = False
    while True:
        try:
            return place.open_writer(node_id, on_event=on_event)
        except WriterConflict as error:
            if error.holder is not None and _is_of_this_node(error.holder):
                raise WriterConflict(
                    f"cln-backup is loaded twice in this node: process {error.holder}, of the "
                    "same lightningd, already writes to the backup; this process wrote "
                    "nothing. Keep one plugin= or important-plugin= line for it in the "
                    "configuration, and no copy in a plugin directory; then start the node "
                    "again."
                ) from None
            if time.monotonic() > deadline_s:
                raise
            if not waiting:
                log(f"Waiting up to {_WAIT_FOR_WRITER_S} seconds: {error}")
            waiting = True
        time.sleep(0.1)


def _is_of_this_node(process: int) -> bool:
    """Whether another process was started by the lightningd that started this one."""
    try:
        return lightningd_above(process) == lightningd_above()
    except OSError:  # it has ended
        return False
