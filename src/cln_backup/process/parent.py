"""The parent of this process, which was started as a `Child` and does one piece of work for it."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from cln_backup.model.errors import BackupError, Interrupted
from cln_backup.process.channel import Inbox, Log, Released, failure, send

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from cln_backup.process.channel import Message

Asked = TypeVar("Asked", bound="Message")
Start = TypeVar("Start", bound="Message")

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOPPED: Final = "The work was stopped; the backup is as before."


class Parent(Generic[Asked]):
    """The process that listens to this one; `Asked` is what it asks after the start."""

    def __init__(self, inbox: Inbox, outbox_fd: int) -> None:
        self._inbox = inbox
        self._outbox_fd = outbox_fd
        self._sending = Lock()
        self._asked: SimpleQueue[Asked | None] = SimpleQueue()
        self._working = False
        self._stopped = False

    def say(self, message: Message) -> None:
        """Tells the parent something; may be called from any thread.

        Raises:
            Interrupted: nobody listens any more.
        """
        try:
            with self._sending:
                send(self._outbox_fd, message)
        except BrokenPipeError:
            raise Interrupted(_STOPPED) from None

    def next(self) -> Asked | None:
        """Waits for what the parent asks next; `None` when it needs nothing more."""
        return self._asked.get()

    def lives(self) -> bool:
        """Whether the parent is there and listens, at this moment."""
        poll = select.poll()
        poll.register(self._inbox.fd, 0)
        return not poll.poll(0)

    def check(self) -> None:
        """For other threads than the main one. Raises `Interrupted` where the work is over."""
        if self._stopped:
            raise Interrupted(_STOPPED)

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        # Once: nothing may cut short the removal of what is unfinished.
        if self._working and not self._stopped:
            self._stopped = True
            raise Interrupted(_STOPPED)

    def _listen(self) -> None:
        """Takes what the parent asks; when it is gone, the main thread is stopped."""
        with contextlib.suppress(EOFError):
            while not isinstance(asked := self._inbox.receive(), Released):
                self._asked.put(asked)  # type: ignore[arg-type]
            self._asked.put(None)
            return
        os.kill(os.getpid(), signal.SIGTERM)

    def _work(self, job: Callable[[], None]) -> None:
        for name in _SIGNALS:
            signal.signal(name, self._stop)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            self._working = True
            Thread(target=self._listen, daemon=True).start()
            job()
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear it
            self._working = False
            with contextlib.suppress(BackupError):
                self.say(failure(error))
        finally:
            self._working = False


def serve(
    job: Callable[[Start, Parent[Asked]], None], start: type[Start], *asks: type[Asked]
) -> None:
    """Does the work of a child process: one call of `job`, with what its parent sent first.

    An error is told to the parent, which raises it; so is each record of this project's log. When
    the parent closes its pipe or dies, `Interrupted` is raised in the main thread.
    """
    inbox_fd, outbox_fd = _take_over(0, os.O_RDONLY), _take_over(1, os.O_WRONLY)
    try:
        first = Inbox(inbox_fd, (start,)).receive()
    except EOFError:
        return
    parent = Parent[Asked](Inbox(inbox_fd, (Released, *asks)), outbox_fd)
    logger = logging.getLogger("cln_backup")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(_Forwarding(parent))
    parent._work(lambda: job(first, parent))  # type: ignore[arg-type]  # noqa: SLF001


def _take_over(fd: int, flags: int) -> int:
    """Takes a pipe away from a standard stream, which no message may come from or go to."""
    taken = os.dup(fd)
    nowhere = os.open(os.devnull, flags | os.O_CLOEXEC)
    os.dup2(nowhere, fd)
    os.close(nowhere)
    return taken


class _Forwarding(logging.Handler):
    """Sends records to the parent's log."""

    def __init__(self, parent: Parent[Asked]) -> None:
        super().__init__()
        self._say = parent.say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(Log(record.name, record.levelno, record.getMessage()))
