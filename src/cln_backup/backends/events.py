"""What is noticed of a backup while it is opened, mended or waited for: one channel for all of it.

Whoever opens a backup says where events go: the plugin and the server log them, the tool prints
them. An event is no error: the call that it comes from goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, TypeAlias


class Noticed(Enum):
    """What an event is about."""

    FOUND = "found"
    """Something that an opening found in the backup, and mended where it is the writer's."""

    KEPT = "kept"
    """Where a dropped change was set aside."""

    WAITING = "waiting"
    """The storage cannot be reached; the call waits for it."""

    BUSY = "busy"
    """The call takes long, and others wait for it."""

    BACK = "back"
    """The storage can be reached again; the call goes on."""


class Event(NamedTuple):
    """One thing that was noticed, with a text for the operator."""

    noticed: Noticed
    text: str


OnEvent: TypeAlias = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """For those who have nobody to tell."""
