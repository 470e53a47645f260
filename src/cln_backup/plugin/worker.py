"""The plugin's worker: answers `db_write` when the change is durable.

The answer is `continue`, or halts lightningd: then the reason is logged first, since lightningd
shows the answer only on stderr while it starts. Starting this program changes nothing: lightningd
also starts its plugins for `lightningd --help`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from cln_backup import __version__
from cln_backup.backends.events import Event, Noticed
from cln_backup.model.errors import BackupError
from cln_backup.node.outside import lightningd_above, other_plugins_live
from cln_backup.node.rollforward_marker import MARKER_NAME
from cln_backup.plugin import guard, jsonrpc
from cln_backup.plugin.compact_command import CompactCommand
from cln_backup.plugin.faults import fault
from cln_backup.plugin.following import Following
from cln_backup.plugin.hook import Hook
from cln_backup.plugin.init_command import InitCommand
from cln_backup.plugin.manifest import ALARM_TOPIC, MANIFEST
from cln_backup.plugin.monitoring import Monitoring
from cln_backup.plugin.replicator import Replicator
from cln_backup.plugin.self_compaction import SelfCompaction
from cln_backup.plugin.status_command import status
from cln_backup.storage import ownership

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.plugin.jsonrpc import Message

_IDLE_MS = 100


class Plugin:
    """The worker: one process that reads lightningd's messages and answers them in order."""

    def __init__(self) -> None:
        self._lightningd = lightningd_above()
        ownership.warn = lambda text: _log("warn", text)
        self._leave_at: float | None = None
        mailbox = jsonrpc.Mailbox()
        self._reader = jsonrpc.Reader(0, mailbox)
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN)
        self._replicator = Replicator(
            os.getcwd(), lambda message: _log("info", message), on_event=self._tell
        )
        self._hook = Hook(self._replicator, _log)
        self._following = Following(self._replicator, _log, self._poll)
        self._compaction = CompactCommand(self._replicator, self._following, _log, self._poll)
        self._by_itself = SelfCompaction(self._replicator, self._compaction, _log)
        self._monitoring = Monitoring(self._replicator, self._status, _log, self._poll)
        begins = (
            *(self._compaction.begin, self._by_itself.begin),
            *(self._following.begin, self._monitoring.begin),
        )
        self._faults: set[str] = set()
        self._init = InitCommand(
            *(self._hook, begins, self._replicator.patience),
            *(_log, self._poll, self._lightningd),
            only_looks=self._only_looks,
        )
        self._guard = guard.Keeper(mailbox, self._lightningd, MANIFEST, _log, self._poll)

    def run(self) -> None:
        """Serves lightningd until it closes the pipe, or has shut its other plugins down.

        Call `leave` afterwards.
        """
        while True:
            events = self._poll.poll(self._timeout_ms())
            if not events:
                self._write_notes()
            parts = (self._init, self._compaction, self._following, self._monitoring)
            for fd, _ in events:
                if fd == 0:
                    if not self._read():
                        return
                    continue
                if self._guard.is_at(fd):
                    self._guard.go_on()
                    continue
                for part in parts:
                    if part.is_at(fd):
                        self._only_looks(part.go_on, fd)
                        break
            self._guard.ensure()
            if self._leave_at is None:
                self._only_looks(self._by_itself.look)
                self._only_looks(self._following.ensure)
            halted = self._hook.halted
            if self._monitoring.is_due(halted, idle=not events):
                self._only_looks(partial(self._monitoring.look, halted))
            if self._leave_at is not None and (
                time.monotonic() >= self._leave_at
                or not other_plugins_live(self._lightningd, os.getpid())
            ):
                return

    def _only_looks(self, work: Callable[[], None], fd: int | None = None) -> None:
        """Does work that the backup does not need: an error in it is an alarm, and no stop.

        `fd` is the descriptor of `poll` that reported the work; after an error, it is not heard
        again.
        """
        try:
            work()
        except BrokenPipeError:  # lightningd has ended
            raise
        except Exception as error:  # noqa: BLE001 - nothing of this may end the backup
            if fd is not None:
                with contextlib.suppress(KeyError):
                    self._poll.unregister(fd)
            why = str(error) if isinstance(error, BackupError) else fault(error)
            if why not in self._faults:
                self._faults.add(why)
                _log("error", f"A part of the backup plugin failed: {why} Each change is stored.")
                alarm = {"kind": "fault", "text": why, "at": time.time()}
                jsonrpc.write(jsonrpc.notification(ALARM_TOPIC, alarm))

    def _timeout_ms(self) -> float | None:
        if self._leave_at is not None:
            return guard.SHUTDOWN_POLL_S * 1000
        if self._replicator.has_notes() or self._guard.is_missing():
            return _IDLE_MS
        parts = (self._by_itself, self._following, self._monitoring)
        return min((ms for part in parts if (ms := part.timeout_ms()) is not None), default=None)

    def _status(self) -> dict[str, object]:
        parts = (self._compaction, self._by_itself, self._following)
        return status(self._replicator, self._hook, *parts)

    def _tell(self, event: Event) -> None:
        level = "info" if event.noticed in (Noticed.FOUND, Noticed.KEPT) else "warn"
        waits = " The node waits." if event.noticed is Noticed.WAITING else ""
        _log(level, event.text + waits)
        self._monitoring.notice(event.text)

    def _read(self) -> bool:
        """Reads once, and serves complete messages; `False` if lightningd has closed the pipe."""
        if not self._reader.read():
            return False
        while (text := self._reader.take()) is not None:
            self._serve(text)
            self._reader.drop()
            self._hook.settle()
        return True

    def _write_notes(self) -> None:
        """Writes what was recorded, while the node does not wait."""
        try:
            self._replicator.write_notes()
        except BackupError as error:
            _log("warn", str(error))
        except Exception as error:  # noqa: BLE001 - the notes are not the backup
            _log("warn", fault(error))

    def _serve(self, text: bytes) -> None:
        message = jsonrpc.decode(text)
        if isinstance(message, jsonrpc.Call) or message.method == "db_write":
            self._hook.answer(message)
            return
        try:
            self._serve_other(message, bytes(message.id))
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 - nothing of this may end the backup
            why = str(error) if isinstance(error, BackupError) else fault(error)
            _log("error", f"{message.method} failed: {why}")
            if bytes(message.id):
                jsonrpc.write(jsonrpc.error(bytes(message.id), why))

    def _serve_other(self, message: Message, request_id: bytes) -> None:
        method = message.method
        if method == "shutdown":
            self._compaction.forget_request()
            self._leave_at = time.monotonic() + guard.SHUTDOWN_S
        elif not request_id:
            return
        elif method == "getmanifest":
            if os.path.lexists(MARKER_NAME):
                from cln_backup.plugin.start.rollforward import await_asked

                await_asked(os.getcwd())
            jsonrpc.write(jsonrpc.answer(request_id, MANIFEST))
        elif method == "init":
            self._init.answer(message)
        elif method == "backup-status":
            jsonrpc.write(jsonrpc.answer(request_id, self._status()))
        elif method == "backup-compact":
            backend = None if self._leave_at is not None else self._replicator.backend
            self._compaction.start(request_id, backend, message.params)
        else:
            jsonrpc.write(jsonrpc.error(request_id, f"cln-backup has no command {method}."))

    def leave(self) -> NoReturn:
        """Ends this process: slow steps first, then the calls that arrived meanwhile.

        lightningd may write to its database until the plugin's pipe ends. It aborts if the pipe
        ends while it waits for an answer, so no other process may have the pipe open any more, and
        nothing may happen between the check that finds no message and the end of the pipe. One
        late call is soon followed by the next, so the pipe has to be quiet for a while.
        """
        try:
            self._guard.dismiss()
            self._write_notes()
            self._only_looks(self._compaction.close)
            self._only_looks(self._following.close)
            stopped = self._leave_at is not None
            self._only_looks(partial(self._monitoring.close, stopped=stopped))
            until = time.monotonic() + guard.LEAVE_S
            while not guard.is_quiet(until) or self._reader.has_begun():
                if not self._read():
                    break
        except BrokenPipeError:  # lightningd has ended
            pass
        except BaseException:  # noqa: BLE001 - told as at the end of any process
            import traceback

            traceback.print_exc()
        finally:
            guard.end_pipe()
            os._exit(0)


def _log(level: str, message: str) -> None:
    jsonrpc.write(jsonrpc.log(level, message))


def main() -> None:
    """Runs the plugin; lightningd starts it."""
    if sys.stdin.isatty() or {"--help", "--version"} & set(sys.argv[1:]):
        sys.stderr.write(
            f"cln-backup {__version__} is a plugin: lightningd starts it. In lightningd's "
            f"configuration, write\n\n    important-plugin={os.path.realpath(sys.argv[0])}\n\n"
            "after `backup-cli init` has set up the backup.\n"
        )
        sys.exit(0 if len(sys.argv) > 1 else 2)
    # The node decides when the plugin ends: it closes the pipe, whatever signal comes first.
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    plugin = Plugin()
    # Any other exception ends this process, and the guard halts the node.
    with contextlib.suppress(BrokenPipeError):  # lightningd has ended
        plugin.run()
    plugin.leave()


if __name__ == "__main__":
    main()
