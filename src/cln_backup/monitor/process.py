"""The monitor's process: `python -m cln_backup.monitor.process`.

It outlives the process that started it, so that it can tell why that has ended.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

from cln_backup.model.health import Level, worst
from cln_backup.monitor.alarms import Alarms
from cln_backup.monitor.messages import Start, Told
from cln_backup.monitor.ping import Ping
from cln_backup.monitor.receivers import receivers_of
from cln_backup.monitor.state import findings
from cln_backup.process.parent import End, Parent, serve

if TYPE_CHECKING:
    from cln_backup.monitor.page.served import ServedPage
    from cln_backup.monitor.state import NodeState

_LOOK_S: Final = 1.0
_DELIVERY_S: Final = 60.0
"""How long this process outlives its parent: less than systemd waits before it kills."""

_GONE: Final = "the plugin ended without a shutdown."


class Monitor:
    """Knows the nodes' states, and tells what changes for the worse or the better."""

    def __init__(self, start: Start) -> None:
        self._receivers = receivers_of(start.title, start.receivers)
        self._pings = [Ping(url) for url in start.receivers.pings]
        self._alarms = Alarms(start.directory)
        self.nodes = start.nodes
        self._silent_s = 0.0
        self._looked_s = time.monotonic()
        self._page: ServedPage | None = None
        if start.page is not None:
            from cln_backup.monitor.page.served import ServedPage

            self._page = ServedPage(start.title, start.directory, start.page)

    def take(self, nodes: dict[str, NodeState]) -> None:
        """Takes the nodes' states over."""
        self.nodes = nodes
        self._silent_s = 0.0

    def look(self) -> None:
        """Tells what has changed, and pings if nothing is bad. Never waits for a receiver."""
        now, now_s = time.time(), time.monotonic()
        # While the machine was suspended, or too busy for this process, the plugin was not silent.
        self._silent_s += min(now_s - self._looked_s, 2 * _LOOK_S)
        self._looked_s = now_s
        found = {name: findings(state, now, self._silent_s) for name, state in self.nodes.items()}
        for notice in self._alarms.take(found, now, now_s):
            for receiver in self._receivers:
                receiver.tell(notice)
        if self._page is not None:
            self._page.take(self.nodes, found, now)
        if found and all(worst(each) is not Level.BAD for each in found.values()):
            for ping in self._pings:
                ping.send_if_due()

    def parent_died(self) -> None:
        """Tells that the nodes ended without a reason, those that have not told one."""
        self.nodes = {
            name: _ended(state) if state.protected is not None else state
            for name, state in self.nodes.items()
        }
        self.look()

    def close(self) -> None:
        """Delivers what is left, for a limited time."""
        until_s = time.monotonic() + _DELIVERY_S
        for receiver in self._receivers:
            receiver.close()
        try:
            if self._page is not None:  # first: the next process needs its address and its file
                self._page.close()
        finally:
            for receiver in self._receivers:
                receiver.join(until_s)


def _ended(state: NodeState) -> NodeState:
    if state.ended is not None or state.halted is not None:
        return state
    return msgspec.structs.replace(state, ended=_GONE)


def _run(start: Start, parent: Parent[Told]) -> None:
    """Watches until the parent has ended, and tells of its end if it was not stopped in order."""
    monitor = Monitor(start)
    while True:
        end = parent.end
        told = parent.next_within(_LOOK_S)
        if told is not None:
            monitor.take(told.nodes)
        elif end is not None:
            break
        monitor.look()
    if end is End.CLOSED:
        monitor.parent_died()
    monitor.close()


if __name__ == "__main__":
    serve(_run, Start, Told, outlives=True)
