"""Signals that stop a command: at once, or only where its files are consistent.

Code that makes or replaces files runs inside `deferred`. There a signal takes effect only at safe
points, which are the reads and writes of `fsio`, and `check`; so no file is ever made without its
maker knowing of it. The signal raises `Interrupted`, and the same code cleans up as after any other
error; a second signal does not cut that short.
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
_STOPPED: Final = "Stopped. The unfinished result was removed; the backup is unchanged."
_FINISHED: Final = "Stopped too late: the command had already finished; its result is in place."


class _State:
    """The state of signals in this process.

    Attributes:
        pending: whether a signal arrived that takes effect at the next safe point.
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
    """The handler of stop signals. Raises `Interrupted` if the signal takes effect at once."""
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
    """A safe point. Raises `Interrupted` if a signal arrived, unless the result is in place."""
    if state.pending and not (state.holding or state.finished):
        _stop()


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, a signal takes effect at safe points only; a late one at the end."""
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
    """Inside there are no safe points: the step is completed or undone as a whole."""
    state.holding += 1
    try:
        yield
    finally:
        state.holding -= 1


@contextmanager
def let_through() -> Iterator[None]:
    """Inside a `held` block: a long part of it that does have safe points."""
    holding, state.holding = state.holding, 0
    try:
        check()
        yield
    finally:
        state.holding = holding


@contextmanager
def at_once() -> Iterator[None]:
    """Inside, a signal takes effect at once: for waits that leave nothing unfinished.

    Signals arrive in the main thread; in another one this changes nothing.
    """
    import threading  # only where something waits: a start has no time for it

    if threading.current_thread() is not threading.main_thread():
        yield
        return
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
    """Ignores signals from now on: this process is about to end."""
    for name in _SIGNALS:
        signal.signal(name, signal.SIG_IGN)


def finished() -> None:
    """From here on the command's result is in place, and signals no longer change it."""
    state.finished = True
