"""A change that is stored in a thread, while a test does something to the server."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.backends.contract import Writer
    from cln_backup.model.change import Change
    from tests.postgres_cluster import Server

_WAIT_S = 60.0
_WAITING = """
SELECT pid FROM pg_stat_activity WHERE application_name = 'cln-backup' AND state <> 'idle'
    AND wait_event_type = %s AND (wait_event = 'SyncRep' OR wait_event_type = 'Lock')
"""


class Appending:
    """One call of `add_change`; `wait` raises its error."""

    def __init__(self, writer: Writer, change: Change) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(writer, change), daemon=True)
        self._thread.start()

    def _run(self, writer: Writer, change: Change) -> None:
        try:
            writer.add_change(change)
        except BaseException as error:  # noqa: BLE001 - for the thread that waits
            self._error = error

    @property
    def is_answered(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> None:
        self._thread.join(_WAIT_S)
        assert not self._thread.is_alive(), "no answer"
        if self._error is not None:
            raise self._error


def wait_for(happened: Callable[[], object]) -> None:
    """Waits until something has happened."""
    deadline_s = time.monotonic() + _WAIT_S
    while not happened():
        assert time.monotonic() < deadline_s, "it does not happen"
        time.sleep(0.01)


def wait_until_at(server: Server, wait: str) -> int:
    """Waits until a change waits for a `Lock`, or for a standby (`IPC`); returns the process id."""
    wait_for(lambda: server.sql(_WAITING, wait))
    return int(server.sql(_WAITING, wait)[0][0])


def confirm_by(server: Server, standbys: str) -> None:
    """Sets the synchronous standbys of a running server."""
    name = standbys.replace("'", "")
    server.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
    server.sql("SELECT pg_reload_conf()")
    wait_for(lambda: server.sql("SHOW synchronous_standby_names") == [(name,)])
