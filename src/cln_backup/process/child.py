"""A child process, seen from the process that starts it.

The child is this Python with one module, `python -m MODULE`. All that it has to know, secrets too,
comes over a pipe, never in its arguments or its environment. It belongs to no terminal, so that
Ctrl-C reaches the parent alone. It ends when the parent closes its end of the pipe, dies or is
killed; what it logs goes to the parent's log; what it raises is raised in the parent. No thread is
needed here.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from cln_backup.model.errors import StorageError
from cln_backup.process.channel import Failed, Inbox, Log, Released, error_of, send

if TYPE_CHECKING:
    from typing_extensions import Self

    from cln_backup.process.channel import Message

Said = TypeVar("Said", bound="Message")

_PIPE_BYTES: Final = 1 << 20
_LOWEST: Final = 19
_REAP_S: Final = 0.5
"""How long to wait for a process that has closed its pipes, and so is at its end."""


class Child(Generic[Said]):
    """A process that does one piece of work; `Said` is what it says.

    Attributes:
        pid: its process id.
    """

    def __init__(
        self,
        module: str,
        start: Message,
        says: tuple[type[Said], ...],
        *,
        work: str,
        lowest_priority: bool = False,
    ) -> None:
        """Starts `python -m module`, which calls `parent.serve`, and sends it `start`.

        `work` completes "The process that …" in messages to the operator. With `lowest_priority`
        it computes only when no other process wants to.

        Raises:
            StorageError: it cannot be started.
        """
        self._work = work
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise StorageError(f"Cannot start the process that {work}: {error}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self._outbox, self._inbox_file = self._process.stdin, self._process.stdout
        self._inbox = Inbox(self._inbox_file.fileno(), (Log, Failed, *says))
        with contextlib.suppress(OSError, AttributeError):  # a larger pipe is only faster
            fcntl.fcntl(self._inbox.fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        if lowest_priority:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self.pid, _LOWEST)
        try:
            self.send(start)
        except BaseException:
            self.kill()
            raise

    def fileno(self) -> int:
        """Becomes readable when `step` has something to do."""
        return self._inbox.fd

    def send(self, message: Message) -> None:
        """Tells the process something. Raises `StorageError` where it is gone."""
        try:
            send(self._outbox.fileno(), message)
        except BrokenPipeError:
            raise self._gone() from None

    def step(self) -> Said | None:
        """Takes what the process says, as far as it has come; `None` where that is no message yet.

        Raises:
            BackupError: what ended the work, as the process raised it; `StorageError` where it
                died without a word.
        """
        try:
            message = self._inbox.step()
        except EOFError:
            raise self._gone() from None
        if isinstance(message, Log):
            logging.getLogger(message.logger).log(message.level, "%s", message.text)
            return None
        if isinstance(message, Failed):
            raise error_of(message, self._work)
        return message  # type: ignore[return-value]  # the decoder takes nothing else

    def receive(self) -> Said:
        """Waits for the next thing that the process says. Raises as `step`."""
        while (said := self.step()) is None:
            pass
        return said

    def is_running(self) -> bool:
        """Whether it has not yet ended."""
        return self._process.poll() is None

    def release(self) -> None:
        """Lets the process finish its work by itself; nobody listens to it any more."""
        with contextlib.suppress(StorageError):
            self.send(Released())
        self.close()

    def close(self) -> None:
        """Ends the process: it stops at once, removes what is unfinished, and is not waited for."""
        self._outbox.close()
        self._inbox_file.close()

    def wait(self, timeout_s: float) -> None:
        """Waits until the process has ended; kills it when the time is up."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """Kills the process, which has nothing to lose, and waits for it."""
        self._process.kill()
        self._process.wait()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    def _gone(self) -> StorageError:
        how = ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_REAP_S)
            how = f" (exit code {code})" if code >= 0 else f" ({_name(-code)})"
        return StorageError(
            f"The process that {self._work} ended unexpectedly{how}, perhaps because memory ran "
            "out. The backup is as before; try again."
        )


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
