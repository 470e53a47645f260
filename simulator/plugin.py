"""The plugin's process and the two pipes to it (`lightningd/plugin.c`, `plugin_hook.c`)."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from simulator.manifest import Manifest
from simulator.nodelog import Level
from simulator.wire import SEPARATOR, MalformedError, Message, MessageStream, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

READ_BYTES = 1 << 16  # what a pipe holds
VERSION = "v26.06.6"

Answered: TypeAlias = Callable[[Message], None]


class State(Enum):
    """How far the plugin has come; the value is how lightningd puts it in its log."""

    AWAITING_GETMANIFEST_RESPONSE = "before replying to getmanifest"
    NEEDS_INIT = "before we sent init"
    AWAITING_INIT_RESPONSE = "before replying to init"
    INIT_COMPLETE = "during normal operation"


class PluginFaultError(Exception):
    """The plugin has to go: it broke the protocol, or its stdout ended.

    Args:
        message: the text that lightningd logs after `Killing plugin: `.
        level: how it logs it.
    """

    def __init__(self, message: str, level: Level = Level.UNUSUAL) -> None:
        super().__init__(message)
        self.level = level


class Plugin:
    """A running plugin.

    Nothing is read except by `receive` and `db_write`; both handle whatever whole messages there
    are. A plugin that has to go makes them raise `PluginFaultError`; the owner then calls `kill`.

    Args:
        command: the program and its arguments.
        name: how the log calls it.
        directory: its working directory, the node's network directory.
        log: takes the lines the plugin sends.

    Attributes:
        fault: why the plugin must be killed, found right after an answer of it.
        is_leaving: whether it was told to end.
    """

    def __init__(
        self, command: Sequence[str], name: str, directory: str, log: Callable[[Level, str], None]
    ) -> None:
        self.name = name
        self.state = State.AWAITING_GETMANIFEST_RESPONSE
        self.manifest = Manifest()
        self.spawned_ns = time.perf_counter_ns()
        self.fault: PluginFaultError | None = None
        self.is_leaving = False
        self._log = log
        self._stream = MessageStream()
        self._waiting: bytes = b""
        self._pending: dict[str, Answered] = {}
        self._progress: dict[str, Answered] = {}
        self._next_id = 0
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=directory,
            env=os.environ | {"LIGHTNINGD_PLUGIN": "1", "LIGHTNINGD_VERSION": VERSION},
            bufsize=0,
        )
        self.pid = self._process.pid
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.stdin_fd = self._process.stdin.fileno()
        self.stdout_fd = self._process.stdout.fileno()
        # lightningd never waits for a plugin to read: it would not see what the plugin says then.
        os.set_blocking(self.stdin_fd, False)

    def request(
        self,
        method: str,
        params: object,
        answered: Answered,
        *,
        prefix: str = "",
        progress: Answered | None = None,
    ) -> None:
        """Queue a request.

        Args:
            method: what is asked.
            params: its parameters, any JSON value.
            answered: takes the whole answer.
            prefix: the id of the command this belongs to, followed by a slash.
            progress: takes the `message` and `progress` notifications that belong to it.
        """
        request_id = self._new_id(method, prefix)
        self._pending[request_id] = answered
        if progress is not None:
            self._progress[request_id] = progress
        self._send({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})

    def notify(self, topic: str, params: object) -> None:
        """Queue a notification."""
        self._send({"jsonrpc": "2.0", "method": topic, "params": params})

    def forget_requests(self) -> list[Answered]:
        """Give up all requests without an answer; returns those who wait for them."""
        waiting = list(self._pending.values())
        self._pending.clear()
        self._progress.clear()
        return waiting

    def hook_request(self, params: bytes) -> tuple[str, bytes]:
        """Encode a call of `db_write`; returns its id and the bytes on the pipe."""
        request_id = self._new_id("db_write", "")
        head = f'{{"jsonrpc":"2.0","id":"{request_id}","method":"db_write","params":'
        return request_id, head.encode() + params + b"}" + SEPARATOR

    def db_write(
        self, params: bytes, *, sent: Callable[[], None] | None = None
    ) -> tuple[int, Message]:
        """Call the hook and wait for the answer, however long it takes.

        As in lightningd nothing but this plugin's pipes is served meanwhile, and its notifications
        are.

        Args:
            params: the encoded parameters.
            sent: called when the request has been written.

        Returns:
            the nanoseconds from the first byte written to the answer parsed, and the answer.

        Raises:
            PluginFaultError: the plugin ended, or broke the protocol.
        """
        request_id, request = self.hook_request(params)
        answers: list[Message] = []
        self._pending[request_id] = answers.append
        if self._waiting:
            request, self._waiting = self._waiting + request, b""
        started_ns = time.perf_counter_ns()
        self._write_all(request)
        if sent is not None:
            sent()
        try:
            self._handle_messages()
            while not answers:
                self.receive()
        except PluginFaultError as fault:
            if not answers:
                raise
            self.fault = fault  # after its answer, which counts
        return time.perf_counter_ns() - started_ns, answers[0]

    def write_part(self, request: bytes, size_bytes: int) -> None:
        """Write the beginning of a request and no more."""
        self._write_all(self._waiting + request[:size_bytes])

    def receive(self) -> None:
        """Read once, waiting if nothing is there, and handle all whole messages.

        Raises:
            PluginFaultError: the plugin's stdout ended, or it broke the protocol.
        """
        chunk = os.read(self.stdout_fd, READ_BYTES)
        if not chunk:
            raise PluginFaultError(f"exited {self.state.value}", Level.INFO)
        self._stream.feed(chunk)
        self._handle_messages()

    def flush(self) -> None:
        """Write what is queued as far as the plugin has room for it."""
        if self._waiting:
            self._waiting = self._waiting[self._write_some(self._waiting) :]

    def has_ended(self) -> bool:
        """Say whether the plugin's stdout has ended; what it said before may still be there."""
        poll = select.poll()
        poll.register(self.stdout_fd, 0)
        return bool(poll.poll(0))

    @property
    def has_output(self) -> bool:
        """Whether something is queued."""
        return bool(self._waiting)

    def kill(self) -> None:
        """Kill the process with SIGKILL, take leave of it and close the pipes."""
        self._process.kill()
        self._process.wait()
        self.close()

    def close(self) -> None:
        """Close the pipes; the process, which may live on, sees the end of its stdin."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        # Processes that outlive the node are not a concern of Popen.
        self._process.returncode = self._process.poll() or 0

    def signal_kill(self, *, wait: bool = False) -> None:
        """Kill the process and nothing else: what follows is found out through the pipes.

        Args:
            wait: return when the process is dead and has let go of its pipes.
        """
        self._process.send_signal(signal.SIGKILL)
        if wait:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def _new_id(self, method: str, prefix: str) -> str:
        self._next_id += 1
        return f"{prefix}cln:{method}#{self._next_id}"

    def _send(self, message: object) -> None:
        self._waiting += encode(message) + SEPARATOR
        self.flush()

    def _write_some(self, data: bytes | memoryview) -> int:
        try:
            return os.write(self.stdin_fd, data)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            return len(data)  # the end of its stdout will tell

    def _write_all(self, data: bytes) -> None:
        """Write everything, reading what the plugin says so that neither waits for the other."""
        written = self._write_some(data)
        if written == len(data):
            return
        rest = memoryview(data)[written:]
        poll = select.poll()
        poll.register(self.stdin_fd, select.POLLOUT)
        poll.register(self.stdout_fd, select.POLLIN)
        while rest:
            for fd, _ in poll.poll():
                if fd == self.stdin_fd:
                    rest = rest[self._write_some(rest) :]
                    continue
                chunk = os.read(fd, READ_BYTES)
                if not chunk:
                    raise PluginFaultError(f"exited {self.state.value}", Level.INFO)
                self._stream.feed(chunk)

    def _handle_messages(self) -> None:
        try:
            while (message := self._stream.next()) is not None:
                if "id" in message:
                    self._handle_response(message)
                else:
                    self._handle_notification(message)
        except MalformedError as error:
            raise PluginFaultError(str(error)) from None

    def _handle_response(self, message: Message) -> None:
        request_id = message["id"]
        # An id that is not known is passed over since v23.11 (plugin_response_handle).
        answered = self._pending.pop(request_id, None) if isinstance(request_id, str) else None
        if answered is not None:
            self._progress.pop(request_id, None)
            answered(message)

    def _handle_notification(self, message: Message) -> None:
        method, params = message.get("method"), message.get("params")
        if not isinstance(method, str) or params is None:
            raise PluginFaultError(
                'Malformed JSON-RPC notification missing "method" or "params":'
                f" {encode(message).decode()}"
            )
        fields = params if isinstance(params, dict) else {}
        if method == "log":
            self._handle_log(fields)
        elif method in ("message", "progress"):
            if "id" not in fields:
                raise PluginFaultError('JSON-RPC notify "id"-field is not present')
            progress = self._progress.get(str(fields["id"]))
            if progress is not None:
                progress(message)
        elif method not in self.manifest.topics:
            self._log(
                Level.UNUSUAL,
                f'Plugin attempted to send a notification to topic "{method}" it hasn\'t declared'
                " in its manifest, not forwarding to subscribers.",
            )

    def _handle_log(self, params: Message) -> None:
        text = params.get("message")
        if not isinstance(text, str):
            raise PluginFaultError(
                'Log notification from plugin doesn\'t have a string "message" field'
            )
        try:
            level = Level.parse(str(params.get("level", "info")))
        except ValueError as error:
            raise PluginFaultError(
                f'Unknown log-level "{error}", valid values are'
                ' "trace", "debug", "info", "warn", or "error".'
            ) from None
        for line in text.split("\n"):
            self._log(level, line)
