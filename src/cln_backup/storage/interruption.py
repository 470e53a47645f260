"""Signals that stop a command: at once, or only where it has a file whole.

What makes or replaces something runs inside `deferred`. There a signal is taken at safe points
alone, which are the reads and writes of `fsio` and `check`; so a file is never made without its
maker knowing of it. What stops is told by one exception, `Interrupted`, and taken away by the same
code as after any other error; no second signal cuts that short.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOPPED: Final = "Stopped. What was being built is removed; the backup is as it was."
_FINISHED: Final = "Stopped too late: the command had finished, and what it made is in place."


class _State:
    """What is going on in this process.

    Attributes:
        pending: whether a signal came that is to be taken at the next safe point.
    """

    __slots__ = ("deferring", "finished", "holding", "pending", "stopping")

    def __init__(self) -> None:
        self.pending = False
        self.deferring = 0
        self.holding = 0
        self.stopping = False
        self.finished = False


state: Final = _State()


def arrived(_signal: int, _frame: FrameType | None) -> None:
    """The handler of signals that mean to stop. Raises `Interrupted` where one is taken at once."""
    if state.stopping:
        return
    if state.deferring or state.holding:
        state.pending = True
    else:
        _stop()


def _stop() -> None:
    state.pending = False
    state.stopping = True
    raise Interrupted(_FINISHED if state.finished else _STOPPED)


def check() -> None:
    """A safe point. Raises `Interrupted` where a signal came, unless the result is in place."""
    if state.pending and not (state.holding or state.finished):
        _stop()


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, a signal is taken at safe points only; one that came late, at the end."""
    if not state.deferring:
        state.finished = False
    state.deferring += 1
    try:
        yield
        if state.deferring == 1:
            check()
    finally:
        state.deferring -= 1


@contextmanager
def held() -> Iterator[None]:
    """Inside there are no safe points: what was begun is brought to its end, or taken away."""
    state.holding += 1
    try:
        yield
    finally:
        state.holding -= 1


@contextmanager
def let_through() -> Iterator[None]:
    """Inside a `held` block: a long part of it that has safe points all the same."""
    holding, state.holding = state.holding, 0
    try:
        check()
        yield
    finally:
        state.holding = holding


@contextmanager
def at_once() -> Iterator[None]:
    """Inside, a signal is taken at once: for waiting, with nothing in hand that could be left."""
    check()
    if state.holding or state.finished:
        yield
        return
    deferring, state.deferring = state.deferring, 0
    try:
        yield
    finally:
        state.deferring = deferring


def ignore() -> None:
    """Has signals no effect any more: this process is about to end."""
    for name in _SIGNALS:
        signal.signal(name, signal.SIG_IGN)


def finished() -> None:
    """From here on the command's result is in place, and no signal may say otherwise."""
    state.finished = True
