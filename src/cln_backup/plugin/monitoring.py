"""The monitor from the plugin's side: started after `init` if alarms are asked for."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from cln_backup.model.errors import BackupError, BadSettings
from cln_backup.plugin.kept_child import KeptChild
from cln_backup.plugin.manifest import (
    APPRISE_OPTION,
    COMMAND_OPTION,
    PAGE_NAME_OPTION,
    PAGE_OPTION,
    PING_OPTION,
    WEBHOOK_OPTION,
)

if TYPE_CHECKING:
    import select
    from collections.abc import Callable, Mapping

    from cln_backup.monitor.messages import PageAt, Receivers
    from cln_backup.monitor.state import NodeState
    from cln_backup.plugin.replicator import Replicator
    from cln_backup.process.channel import Message
    from cln_backup.process.child import Child

_TELL_S: Final = 10.0
_BUSY_S: Final = 10.0
"""How long a busy node may delay a report: gathering it takes a moment."""

_MAX_NOTICES: Final = 50
_MAX_NOTICE: Final = 500
"""So many of at most so many characters fit into any pipe, with all else that is told."""


class Monitoring:
    """Tells the monitor how the node is; that process tells the operator."""

    def __init__(
        self,
        replicator: Replicator,
        status: Callable[[], dict[str, Any]],
        log: Callable[[str, str], None],
        poll: select.poll,
    ) -> None:
        """Registers with `poll`, which reports when to call `go_on`. `status`: `backup-status`."""
        self._replicator = replicator
        self._status = status
        self._log = log
        self._child: KeptChild[Message] = KeptChild(self._start, _ignore, log, poll)
        self._receivers: Receivers | None = None
        self._page: PageAt | None = None
        self._due_s = math.inf
        self._halted: str | None = None
        self._last: dict[str, Any] = {}
        self._notices: deque[tuple[float, str]] = deque(maxlen=_MAX_NOTICES)

    def begin(self, options: Mapping[str, object]) -> None:
        """Takes the options, after `init`, and starts the monitor if they ask for anything."""
        given = [
            _several(options.get(name))
            for name in (APPRISE_OPTION, WEBHOOK_OPTION, COMMAND_OPTION, PING_OPTION)
        ]
        place = str(options.get(PAGE_OPTION) or "")
        if self._replicator.backend is None or not (any(given) or place):
            return
        if place:
            self._page = self._page_at(place, _several(options.get(PAGE_NAME_OPTION)))
        self._receivers = self._checked(given)
        if self._receivers is not None or self._page is not None:
            self._child.begin()

    def _checked(self, given: list[tuple[str, ...]]) -> Receivers | None:
        if not any(given):
            return None
        from cln_backup.monitor.messages import Receivers
        from cln_backup.monitor.receivers import check

        receivers = Receivers(*given)
        try:
            check(receivers)
        except BadSettings as error:
            self._log("error", f"No alarms are sent: {error}")
            return None
        return receivers

    def _page_at(self, place: str, names: tuple[str, ...]) -> PageAt | None:
        from cln_backup.monitor.messages import PageAt
        from cln_backup.wire.address import BadAddress, parse_address

        try:
            return PageAt(*parse_address(place, "the address", lowest_port=0), names)
        except BadAddress as error:
            self._log(
                "error",
                f"The page is not served: {PAGE_OPTION}={place} cannot be understood: {error}. The "
                "form is HOST:PORT, such as 127.0.0.1:9738.",
            )
            return None

    def _start(self) -> Child[Message]:
        from cln_backup.monitor.messages import Receivers, Start
        from cln_backup.process.channel import Message
        from cln_backup.process.child import Child

        directory = os.getcwd()
        title = f"{os.uname().nodename} {os.path.basename(directory)}"
        self._due_s = time.monotonic() + _TELL_S
        return Child(
            "cln_backup.monitor.process",
            Start(title, directory, self._receivers or Receivers(), self._nodes(), self._page),
            (Message,),
            work="sends alarms, and serves the page",
            lowest_priority=True,
        )

    def notice(self, text: str) -> None:
        """Takes something that the backup has told the operator."""
        self._notices.append((time.time(), text[:_MAX_NOTICE]))

    def timeout_ms(self) -> float | None:
        """The time until `look` has something to do; `None` if it has nothing."""
        due_s = self._due_s if self._child.runs else math.inf
        starts_ms = self._child.timeout_ms()
        if starts_ms is None and due_s == math.inf:
            return None
        due_ms = max(0.0, due_s - time.monotonic()) * 1000
        return due_ms if starts_ms is None else min(due_ms, starts_ms)

    def is_due(self, halted: str | None, *, idle: bool) -> bool:
        """Whether `look` has something to do; `idle`: the node wants nothing at the moment."""
        if self._receivers is None and self._page is None:
            return False
        if not self._child.runs:
            return self._child.timeout_ms() == 0
        late_s = time.monotonic() - self._due_s
        return halted != self._halted or late_s >= (0 if idle else _BUSY_S)

    def look(self, halted: str | None) -> None:
        """Starts the monitor again, or tells it how the node is."""
        self._child.ensure()
        self._halted = halted
        self._due_s = time.monotonic() + _TELL_S
        self._tell()

    def _tell(self, **more: object) -> None:
        from cln_backup.monitor.messages import Told

        self._child.send(Told(self._nodes(**more)))

    def _nodes(self, **more: object) -> dict[str, NodeState]:
        from cln_backup.monitor.state import state_of
        from cln_backup.storage import scratch

        try:
            self._last = self._status()
        except (BackupError, OSError):  # the halt may have the same reason
            self._last |= {"protected": self._halted is None, "halted": self._halted}
        fields = {**self._last, "at": time.time(), **more}
        backend = self._replicator.backend
        directory = None if backend is None else backend.place.storage_dir
        fields["free_bytes"] = scratch.free_bytes(directory)
        fields["notices"] = [{"at": at, "text": text} for at, text in self._notices]
        return {"": state_of(fields)}

    def is_at(self, fd: int) -> bool:
        """Whether this descriptor of `poll` is the monitor's."""
        return self._child.is_at(fd)

    def go_on(self) -> None:
        """Handles the end of the monitor; it says nothing else."""
        try:
            self._child.step()
        except BackupError as error:
            self._child.end()
            self._child.rest(error)

    def close(self, *, stopped: bool) -> None:
        """Leaves the monitor to itself; `stopped` says whether the node was stopped in order."""
        if stopped:
            self._child.release()
        elif self._child.runs and self._halted is None:
            self._tell(ended="lightningd closed its pipe without a shutdown.")
        self._child.close()


def _several(given: object) -> tuple[str, ...]:
    """The values of an option that may be given several times."""
    values = given if isinstance(given, list | tuple) else [given]
    return tuple(str(value) for value in values if value)


def _ignore(_why: str) -> None:
    pass
