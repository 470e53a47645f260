"""The child's side: the parent of this process, which was started as a `Child`."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
from enum import Enum
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread, current_thread, main_thread
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

from cln_backup.model.errors import BackupError, Interrupted
from cln_backup.process.channel import Inbox, Log, Released, YieldToAll, failure, send
from cln_backup.process.priority import yield_to_all

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from cln_backup.process.channel import Message

Asked = TypeVar("Asked", bound="Message")
Start = TypeVar("Start", bound="Message")
Done = TypeVar("Done")
_Works: TypeAlias = "SimpleQueue[Callable[[], None]]"

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MEANWHILE_S: Final = 1.0
_STOPPED: Final = "The work was stopped; the backup is unchanged."


class End(Enum):
    """How a parent ends: it lets this process finish, or closes its pipe, as at its death."""

    RELEASED = "released"
    CLOSED = "closed"


class Aside(Generic[Done]):
    """Work that another thread of this process does."""

    def __init__(self, work: Callable[[], Done]) -> None:
        self._work = work
        self._has_ended = Event()
        self._done: Done | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Does the work, in the other thread."""
        try:
            self._done = self._work()
        except BaseException as error:  # noqa: BLE001 - raised where the work was asked for
            self._error = error
        finally:
            self._has_ended.set()

    def result(self, meanwhile: Callable[[], None] | None = None) -> Done:
        """Waits for the end of the work, and calls `meanwhile` about once a second.

        Returns its result, or raises its error; an error of `meanwhile` only after that end.
        """
        try:
            while not self._has_ended.wait(_MEANWHILE_S):
                if meanwhile is not None:
                    meanwhile()
        finally:
            self._has_ended.wait()
        if self._error is not None:
            raise self._error
        return self._done  # type: ignore[return-value]  # there was no error


class Parent(Generic[Asked]):
    """The parent process; `Asked` is the type of its requests after the start."""

    def __init__(
        self, inbox: Inbox, outbox_fd: int, aside: _Works | None = None, *, outlived: bool = False
    ) -> None:
        self._inbox = inbox
        self._outbox_fd = outbox_fd
        self._sending = Lock()
        self._asked: SimpleQueue[Asked | None] = SimpleQueue()
        self._aside = aside
        self._working = False
        self._stopped = False
        self._in_message = False
        self._stop_after_message = False
        self._outlived = outlived
        self._end: End | None = None

    def say(self, message: Message) -> None:
        """Sends the parent a message; may be called from any thread.

        Raises:
            Interrupted: the parent no longer listens.
        """
        in_main = current_thread() is main_thread()
        try:
            with self._sending:
                self._in_message = in_main
                try:
                    send(self._outbox_fd, message)
                finally:
                    self._in_message = False
        except BrokenPipeError:
            raise Interrupted(_STOPPED) from None
        if in_main and self._stop_after_message:
            self._interrupt()

    def next(self) -> Asked | None:
        """Waits for the parent's next request; `None` if there are no more."""
        return self._asked.get()

    def next_within(self, timeout_s: float) -> Asked | None:
        """The parent's next request; `None` if there is none within that time."""
        try:
            return self._asked.get(timeout=timeout_s)
        except Empty:
            return None

    def aside(self, work: Callable[[], Done]) -> Aside[Done]:
        """Does some work in another thread, at the priority with which this process was started.

        (On Linux a priority is a thread's.) One after the other; long work calls `check` often.
        """
        if self._aside is None:
            self._aside = _works_aside()
        done = Aside(work)
        self._aside.put(done.run)
        return done

    def lives(self) -> bool:
        """Whether the parent is alive and listens, at this moment."""
        poll = select.poll()
        poll.register(self._inbox.fd, 0)
        return not poll.poll(0)

    @property
    def end(self) -> End | None:
        """How it has ended; `None` while it may ask more, besides what `next_within` still has."""
        return self._end

    def check(self) -> None:
        """For threads other than the main one. Raises `Interrupted` if the work is over."""
        if self._stopped:
            raise Interrupted(_STOPPED)

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        if self._outlived:
            return
        if self._in_message:  # what follows half a message would be taken for its other half
            self._stop_after_message = True
        else:
            self._interrupt()

    def _interrupt(self) -> None:
        # Once: nothing may interrupt the removal of unfinished files.
        if self._working and not self._stopped:
            self._stopped = True
            raise Interrupted(_STOPPED)

    def _listen(self) -> None:
        """Receives the parent's requests; when it has ended, stops the main thread."""
        with contextlib.suppress(EOFError):
            while not isinstance(asked := self._inbox.receive(), Released):
                self._asked.put(asked)  # type: ignore[arg-type]
            self._end = End.RELEASED
            self._asked.put(None)
            return
        self._end = End.CLOSED
        if not self._outlived:
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


def _works_aside() -> _Works:
    """Starts a thread that does what is put into the queue."""
    works: _Works = SimpleQueue()

    def run() -> None:
        while True:
            works.get()()

    Thread(target=run, daemon=True).start()
    return works


def serve(
    job: Callable[[Start, Parent[Asked]], None],
    start: type[Start],
    *asks: type[Asked],
    outlives: bool = False,
) -> None:
    """Does the work of a child process: one call of `job`, with the parent's first message.

    An error is sent to the parent, which raises it; log records of this project are sent too. When
    the parent closes its pipe or dies, `Interrupted` is raised in the main thread; but not in a job
    that `outlives` the parent, which looks at `Parent.end`, and which no signal to stop ends.
    """
    inbox_fd, outbox_fd = _take_over(0, os.O_RDONLY), _take_over(1, os.O_WRONLY)
    aside = None
    try:
        starting = Inbox(inbox_fd, (YieldToAll, start))
        if isinstance(first := starting.receive(), YieldToAll):
            # Not before: on a busy machine, the imports alone would take very long.
            aside = _works_aside()  # it keeps the priority
            yield_to_all()
            first = starting.receive()
    except EOFError:
        return
    parent = Parent[Asked](Inbox(inbox_fd, (Released, *asks)), outbox_fd, aside, outlived=outlives)
    logger = logging.getLogger("cln_backup")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(_Forwarding(parent, outlived=outlives))
    parent._work(lambda: job(first, parent))  # type: ignore[arg-type]  # noqa: SLF001


def _take_over(fd: int, flags: int) -> int:
    """Moves a pipe off a standard stream, so that no other output mixes with the messages."""
    taken = os.dup(fd)
    nowhere = os.open(os.devnull, flags | os.O_CLOEXEC)
    os.dup2(nowhere, fd)
    os.close(nowhere)
    return taken


class _Forwarding(logging.Handler):
    """Sends records to the parent's log."""

    def __init__(self, parent: Parent[Asked], *, outlived: bool) -> None:
        super().__init__()
        self._say = parent.say
        self._outlived = outlived

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._say(Log(record.name, record.levelno, record.getMessage()))
        except Interrupted:
            if not self._outlived:  # otherwise its log has no reader, and that must not end it
                raise
