"""The follower as the helper of a compaction, from the writer's side."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from cln_backup.compaction.messages import Compact, More, Settled
from cln_backup.follower.messages import CompactionAsk
from cln_backup.model.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.process.channel import Message

_numbers: Final = itertools.count(1)


class FollowerHelper:
    """Implements `compaction.compactor.Helper`, for one compaction.

    Attributes:
        number: of the compaction; answers with another number are about another one.
    """

    def __init__(self, ask: Callable[[Message], bool], name: str) -> None:
        """`ask` sends the follower a message, if it runs; `name` is the backup's there."""
        self._ask = ask
        self._name = name
        self.number = next(_numbers)

    def send(self, message: Message) -> None:
        """See `Helper.send`."""
        assert isinstance(message, Compact | More | Settled)
        if not self._send(message):
            raise StorageError("The follower has ended; the backup is unchanged. Try again.")

    def release(self) -> None:
        """See `Helper.release`."""
        self._send(Settled(taken=True))

    def close(self) -> None:
        """See `Helper.close`."""
        self._send(Settled(taken=False))

    def wait(self, timeout_s: float) -> None:
        """See `Helper.wait`: the follower continues."""

    def _send(self, message: Compact | More | Settled) -> bool:
        return self._ask(CompactionAsk(self._name, self.number, message))
