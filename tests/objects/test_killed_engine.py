"""An object store that is killed, again and again, while a node writes to it."""

from __future__ import annotations

import threading

from cln_backup.backends import create_backend, open_writer
from demo.engines import running_store
from tests.histories import add_all, payments, started_node, told, told_by
from tests.soak import SOAK

_KILLS = 12 if SOAK else 1


def test_what_was_answered_is_there_after_the_store_was_killed() -> None:
    with running_store() as (store, restart):
        url = store.url("killed", deadline=120)
        create_backend(url, None)
        last, over = 3, threading.Event()
        failures: list[BaseException] = []

        def write() -> None:
            nonlocal last
            try:
                with open_writer(url) as writer:
                    add_all(writer, started_node())
                    while not over.is_set():
                        add_all(writer, payments(last + 1, last + 2))
                        last += 1
            except BaseException as error:  # noqa: BLE001 - told by the main thread
                failures.append(error)

        writing = threading.Thread(target=write)
        writing.start()
        try:
            for _ in range(_KILLS):
                before = last
                restart()
                while last < before + 3 and writing.is_alive():
                    over.wait(0.02)
        finally:
            over.set()
            writing.join()
        assert not failures
        assert told_by(url) == told([*started_node(), *payments(4, last + 1)])
