"""A child process, from the parent's side.

The child is this Python with one module, `python -m MODULE`. All its input, including secrets,
comes over a pipe, never in its arguments or its environment. It has no terminal, so that Ctrl-C
reaches only the parent. It ends when the parent closes its end of the pipe, ends or is killed; its
log goes to the parent's log; its errors are raised in the parent. No thread is needed here.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import struct
import sys
import termios
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import msgspec

from cln_backup.model.errors import StorageError
from cln_backup.process.channel import (
    Failed,
    Inbox,
    Log,
    Released,
    YieldToAll,
    error_of,
    send,
    size_of,
)

if TYPE_CHECKING:
    import subprocess

    from typing_extensions import Self

    from cln_backup.process.channel import Message

Said = TypeVar("Said", bound="Message")

_released: list[subprocess.Popen[bytes]] = []
"""Processes that finish their work by themselves; they are reaped when another one is released."""

_PIPE_BYTES: Final = 1 << 20
_GETPIPE_SZ: Final = 1032
"""Of Linux; not every build of Python names it."""

_REAP_S: Final = 0.5
"""How long to wait for a process that has closed its pipes, and so is about to end."""


class Child(Generic[Said]):
    """A process that does one piece of work; `Said` is the type of its messages.

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
        it runs only when processor and disk would be idle (`priority`).

        Raises:
            StorageError: it cannot be started.
        """
        import subprocess

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
        try:
            if lowest_priority:
                self.send(YieldToAll())
            self.send(start)
        except BaseException:
            self.kill()
            raise

    def fileno(self) -> int:
        """Becomes readable when `step` has something to do."""
        return self._inbox.fd

    def send(self, message: Message) -> None:
        """Sends the process a message. Raises `StorageError` if it has ended."""
        try:
            send(self._outbox.fileno(), message)
        except BrokenPipeError:
            raise self._gone() from None

    def unread_bytes(self) -> int:
        """How much of what was sent it has not read yet; if that is much, `send` may wait."""
        found = bytearray(struct.calcsize("i"))
        fcntl.ioctl(self._outbox.fileno(), termios.FIONREAD, found)
        unread: int = struct.unpack("i", found)[0]
        return unread

    def has_room_for(self, message: Message) -> bool:
        """Whether `send` certainly does not wait, even if the process is stopped."""
        fd, size = self._outbox.fileno(), size_of(message)
        room = fcntl.fcntl(fd, getattr(fcntl, "F_GETPIPE_SZ", _GETPIPE_SZ)) // mmap.PAGESIZE
        # Two writes share a page only if both fit, so each page but one is half full.
        unread = self.unread_bytes()
        taken = 2 * unread // mmap.PAGESIZE + 1 if unread else 0
        return taken + size // mmap.PAGESIZE + 1 <= room

    def step(self) -> Said | None:
        """Reads from the process; returns a message once it is complete, before that `None`.

        Raises:
            BackupError: the error that ended the work, as the process raised it; `StorageError` if
                it died without a message.
        """
        try:
            message = self._inbox.step()
        except EOFError:
            raise self._gone() from None
        except msgspec.DecodeError:
            self._process.kill()
            raise StorageError(
                f"The process that {self._work} does not speak as this one expects: "
                "cln-backup was upgraded meanwhile. The backup is unchanged; restart the node, or "
                "the server, to use the new release."
            ) from None
        if isinstance(message, Log):
            import logging

            logging.getLogger(message.logger).log(message.level, "%s", message.text)
            return None
        if isinstance(message, Failed):
            raise error_of(message, self._work)
        return message  # type: ignore[return-value]  # the decoder accepts nothing else

    def receive(self) -> Said:
        """Waits for the next message of the process. Raises as `step`."""
        while (said := self.step()) is None:
            pass
        return said

    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def release(self) -> None:
        """Lets the process finish its work by itself, without listening to it any more."""
        with contextlib.suppress(StorageError):
            self.send(Released())
        self.close()
        _released[:] = [process for process in _released if process.poll() is None]
        _released.append(self._process)

    def close(self) -> None:
        """Ends the process without waiting: it stops at once and removes its unfinished files."""
        self._outbox.close()
        self._inbox_file.close()

    def wait(self, timeout_s: float) -> None:
        """Waits until the process has ended; kills it at the timeout."""
        from subprocess import TimeoutExpired

        try:
            self._process.wait(timeout_s)
        except TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """Kills the process, which loses nothing, and waits for it."""
        self._process.kill()
        self._process.wait()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    def _gone(self) -> StorageError:
        from subprocess import TimeoutExpired

        how = ""
        with contextlib.suppress(TimeoutExpired):
            code = self._process.wait(_REAP_S)
            how = f" (exit code {code})" if code >= 0 else f" ({_name(-code)})"
        return StorageError(
            f"The process that {self._work} ended unexpectedly{how}, perhaps because memory ran "
            "out. The backup is unchanged; try again."
        )


def _name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
