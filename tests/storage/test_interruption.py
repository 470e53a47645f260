"""Signals that wait for a safe point, while other threads of the process wait for a storage."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from cln_backup.storage import interruption


def test_waits_of_other_threads_leave_no_signal_let_through() -> None:
    entered, leave = threading.Barrier(3), threading.Barrier(3)

    def wait() -> None:
        with interruption.at_once():
            entered.wait()
            leave.wait()

    with interruption.deferred(), ExitStack() as threads:
        for _ in range(2):
            thread = threading.Thread(target=wait)
            thread.start()
            threads.callback(thread.join)
        entered.wait()
        during = interruption.state.deferring
        leave.wait()
        threads.close()
        assert (during, interruption.state.deferring) == (1, 1)
    assert interruption.state.deferring == 0
