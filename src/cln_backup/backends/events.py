"""Events: the one channel for notices from opening, repairing or waiting for a backup.

The opener of a backup passes a receiver: the plugin and the server log events, the tool prints
them. An event is not an error: the call that it comes from continues.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, TypeAlias


class Noticed(Enum):
    """The subject of an event."""

    FOUND = "found"
    """A fault found when the backup was opened; a writer has repaired it."""

    KEPT = "kept"
    """A dropped change was set aside."""

    WAITING = "waiting"
    """The storage cannot be reached; the call waits for it."""

    BUSY = "busy"
    """The call takes long, and other processes wait for it."""

    BACK = "back"
    """The storage can be reached again; the call continues."""

    WARNED = "warned"
    """Something at a node's start that its operator should look at; the start continues."""


class Event(NamedTuple):
    """One event, with a text for the operator."""

    noticed: Noticed
    text: str


OnEvent: TypeAlias = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """A receiver that ignores events."""
