"""A child process of the plugin that is watched, and started again if it ends."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from cln_backup.model.errors import BackupError

if TYPE_CHECKING:
    import select
    from collections.abc import Callable

    from cln_backup.process.channel import Message
    from cln_backup.process.child import Child

Said = TypeVar("Said", bound="Message")

_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 300.0
_LONG_LIFE_S: Final = 600.0


class KeptChild(Generic[Said]):
    """Starts the process when it is due, after growing pauses; the node never waits for it.

    Attributes:
        runs: whether the process is there.
    """

    def __init__(
        self,
        start: Callable[[], Child[Said]],
        rest: Callable[[str], None],
        log: Callable[[str, str], None],
        poll: select.poll,
    ) -> None:
        """Registers with `poll`, which reports when to call `step`.

        `start` starts the process, or raises `BackupError`; `rest` is told why it has ended.
        """
        self._start = start
        self._rested = rest
        self._log = log
        self._poll = poll
        self._child: Child[Said] | None = None
        self._start_at = math.inf
        self._started_at = 0.0
        self._pause_s = _PAUSE_S

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return self._child is not None

    def begin(self) -> None:
        """Starts the process for the first time."""
        self._start_at = time.monotonic()
        self.ensure()

    def timeout_ms(self) -> float | None:
        """The time until `ensure` has something to do; `None` if it has nothing."""
        if self._start_at == math.inf:
            return None
        return max(0.0, self._start_at - time.monotonic()) * 1000

    def ensure(self) -> None:
        """Starts the process if it is time to."""
        if time.monotonic() < self._start_at:
            return
        self._start_at = math.inf
        try:
            self._child = self._start()
        except BackupError as error:
            self.rest(error)
            return
        self._started_at = time.monotonic()
        import select

        self._poll.register(self._child.fileno(), select.POLLIN)

    def is_at(self, fd: int) -> bool:
        """Whether this descriptor of `poll` is the process's."""
        return self._child is not None and fd == self._child.fileno()

    def step(self) -> Said | None:
        """Reads from the process. Raises `BackupError` if it has ended: call `end`, and `rest`."""
        assert self._child is not None
        return self._child.step()

    def send(self, message: Message) -> bool:
        """Sends the process a message; `False` if it does not run, or does not read."""
        if self._child is None or not self._child.has_room_for(message):
            return False
        try:
            self._child.send(message)
        except BackupError:  # it has ended; `step` will hear of it
            return False
        return True

    def rest(self, error: BackupError) -> None:
        """Starts the process again after a pause, which grows."""
        if time.monotonic() - self._started_at > _LONG_LIFE_S:
            self._pause_s = _PAUSE_S
        self._rested(str(error))
        self._log("warn", f"{error} It starts again in {self._pause_s:.0f} s.")
        self._start_at = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def end(self) -> None:
        """Closes the pipes of the process without waiting for its end."""
        if self._child is not None:
            self._poll.unregister(self._child.fileno())
            self._child.close()
            self._child = None

    def release(self) -> None:
        """Lets the process finish its work by itself, and never starts it again."""
        self._start_at = math.inf
        if self._child is not None:
            self._poll.unregister(self._child.fileno())
            self._child.release()
            self._child = None

    def close(self) -> None:
        """Ends the process for good."""
        self._start_at = math.inf
        self.end()
