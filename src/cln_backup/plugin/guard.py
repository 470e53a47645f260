"""The guard: halts the node if the worker that writes its backup has died.

lightningd drops a plugin that is not loaded as important as soon as its pipe ends, and continues
without it, silently. So a second process has the same pipes. It does nothing while the worker
lives; when the worker is gone, it answers the requests that the worker left unanswered, and the
next `db_write` with a halt.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import time
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.node.outside import other_plugins_live
from cln_backup.plugin import jsonrpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.plugin.jsonrpc import Mailbox

SHUTDOWN_S = 8.0
"""The maximum time after `shutdown`: containers are killed after 10 s."""

SHUTDOWN_POLL_S = 0.05

LEAVE_S = 2.0
"""The maximum wait for silence on lightningd's pipe before leaving."""

_QUIET_S = 0.2
_DISMISS_S = 1.0

_ID = re.compile(rb'"id"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d+)')
_METHOD = re.compile(rb'"method"\s*:\s*"(\w[\w-]*)"')
_LEAVE = b"leave"
_REASON = (
    "The backup plugin's worker process was killed or has crashed. Nothing is lost: the node is "
    "halted before it commits anything that the backup does not have. Start the node again; if "
    "this happens again, find out from the system's log what kills the worker (the kernel, when "
    "memory runs out)."
)


class Guard(NamedTuple):
    """A guard process, seen from the worker.

    Attributes:
        pid: its process id.
        life_fd: a pipe to it that ends when the worker dies.
    """

    pid: int
    life_fd: int

    def dismiss(self) -> None:
        """Ends the guard silently: the worker is leaving in an orderly way.

        When this returns, it has ended, and no longer has lightningd's pipes open.
        """
        with contextlib.suppress(BrokenPipeError):  # it has already ended
            os.write(self.life_fd, _LEAVE)
        os.close(self.life_fd)
        deadline_s = time.monotonic() + _DISMISS_S
        with contextlib.suppress(ChildProcessError):  # it was already waited for
            while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                if time.monotonic() >= deadline_s:  # it was stopped (SIGSTOP)
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
                    return
                time.sleep(0.001)


def spawn(mailbox: Mailbox, lightningd: int, manifest: object) -> Guard:
    """Starts a guard as a child of this process, with lightningd's pipes as descriptors 0 and 1.

    Args:
        mailbox: the input that the worker has read and not answered.
        lightningd: its process id.
        manifest: the answer to `getmanifest`, if the worker dies before that.
    """
    ours, life_fd = os.pipe()
    pid = os.fork()
    if pid:
        os.close(ours)
        return Guard(pid, life_fd)
    try:
        os.dup2(ours, 3)
        os.closerange(4, 1 << 16)  # this process must not keep the worker's lock on the backup
        signal.set_wakeup_fd(-1)
        _watch(3, mailbox, lightningd, manifest)
    except BrokenPipeError:
        pass  # lightningd has ended too
    except BaseException:  # noqa: BLE001 - a child must not continue in its parent's code
        import traceback

        traceback.print_exc()
    finally:
        os._exit(0)


class Keeper:
    """Keeps a guard beside the worker: replaces one that was killed."""

    def __init__(
        self,
        mailbox: Mailbox,
        lightningd: int,
        manifest: object,
        log: Callable[[str, str], None],
        poll: select.poll,
    ) -> None:
        """Starts the first guard, as `spawn` does; registers with `poll` for ended children."""
        self._arguments = mailbox, lightningd, manifest
        self._log = log
        self._child_ended = _wake_on_children()
        poll.register(self._child_ended, select.POLLIN)
        self._guard: Guard | None = None
        self.ensure()

    def is_missing(self) -> bool:
        """Whether there is no guard, so that `ensure` should be called again soon."""
        return self._guard is None

    def ensure(self) -> None:
        """Starts a guard if there is none; may fail if the system is out of processes."""
        if self._guard is None:
            with contextlib.suppress(OSError):
                self._guard = spawn(*self._arguments)

    def is_at(self, fd: int) -> bool:
        """Whether this descriptor of `poll` reports an ended child."""
        return fd == self._child_ended

    def go_on(self) -> None:
        """Reaps the children that have ended; if one was the guard, starts another."""
        os.read(self._child_ended, 4096)
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._guard is not None and pid == self._guard.pid:
                os.close(self._guard.life_fd)
                self._guard = None
                self._log("warn", "The backup plugin's guard process was killed; it is replaced.")
                self.ensure()

    def dismiss(self) -> None:
        """Ends the guard silently, as `Guard.dismiss` does."""
        if self._guard is not None:
            self._guard.dismiss()


def _wake_on_children() -> int:
    """A pipe that becomes readable when a child ends."""
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
    return readable


def is_quiet(until: float) -> bool:
    """Whether lightningd sends nothing for a while; after the monotonic time `until`, right now."""
    return not select.select([0], [], [], _QUIET_S if time.monotonic() < until else 0)[0]


def end_pipe() -> None:
    """Closes the pipe that lightningd reads: the last step of this process.

    The end of the process would close it too, but only after the system has freed its memory.
    """
    with contextlib.suppress(OSError):
        os.close(1)


def _watch(life_fd: int, mailbox: Mailbox, lightningd: int, manifest: object) -> None:
    if os.read(life_fd, len(_LEAVE)) == _LEAVE:
        return
    pending = mailbox.text()
    if not pending:  # otherwise it is logged with the answer
        jsonrpc.write(jsonrpc.log("error", _REASON))
    large = len(pending) == jsonrpc.MAILBOX_BYTES
    leave_at: float | None = None
    while True:
        *messages, pending = pending.split(b"\n\n")
        for message in messages:
            if _take_over(message, manifest) == "shutdown":
                leave_at = time.monotonic() + SHUTDOWN_S
        if pending and b"db_write" in pending[:4096]:
            # The worker may have read the whole message: the rest may never come.
            _take_over(pending, manifest)
            pending = b""
        elif large:
            pending = b""
        large = False
        if leave_at is not None and not pending:
            gone = not other_plugins_live(lightningd, os.getpid())
            if (gone or time.monotonic() >= leave_at) and is_quiet(leave_at):
                end_pipe()
                return
        timeout_s = None if leave_at is None else SHUTDOWN_POLL_S
        if select.select([0], [], [], timeout_s)[0]:
            data = os.read(0, jsonrpc.MAILBOX_BYTES)
            if not data:
                return
            pending += data


def _take_over(message: bytes, manifest: object) -> str:
    """Answers one message of lightningd, complete or only its start; returns its method."""
    method_found, id_found = _METHOD.search(message[:4096]), _ID.search(message[:4096])
    method = "" if method_found is None else method_found[1].decode()
    if id_found is None:
        return method
    request_id = id_found[1]
    if method == "db_write":
        jsonrpc.write(jsonrpc.log("error", _REASON))
        jsonrpc.write(jsonrpc.answer(request_id, {"result": "halt", "reason": _REASON}))
    elif method == "getmanifest":
        jsonrpc.write(jsonrpc.answer(request_id, manifest))
    elif method == "init":
        jsonrpc.write(jsonrpc.answer(request_id, {}))
    else:
        jsonrpc.write(jsonrpc.error(request_id, _REASON))
    return method
