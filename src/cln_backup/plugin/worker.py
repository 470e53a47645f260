"""The plugin: speaks with lightningd and answers `db_write` when the change is durable.

lightningd is answered `continue`, or halted: then the reason is logged first, since during its
start it shows the answer only on stderr. Starting this program touches nothing: lightningd also
starts its plugins for `lightningd --help`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, NoReturn

from cln_backup import __version__
from cln_backup.backends import redacted
from cln_backup.backends.contract import size_of
from cln_backup.model.errors import BackupError, broken_installation
from cln_backup.node import rpc
from cln_backup.node.outside import lightningd_above, other_plugins_live
from cln_backup.plugin import guard, jsonrpc
from cln_backup.plugin.compact_command import CompactCommand
from cln_backup.plugin.replicator import Replicator

if TYPE_CHECKING:
    from cln_backup.plugin.jsonrpc import Call, Message

_OPTION = "backup-destination"
MANIFEST = {
    "dynamic": False,
    "nonnumericids": True,
    "options": [
        {
            "name": _OPTION,
            "type": "string",
            "default": "",  # so that listconfigs shows it, and with it how we were loaded
            "description": "UNUSED. The destination is what backup.lock in the network directory "
            "says.",
        },
        {
            "name": "backup-scratch-dir",
            "type": "string",
            "description": "Where a compaction builds its database. By default beside the backup; "
            "of an encrypted one, in the network directory.",
        },
    ],
    "rpcmethods": [
        {
            "name": "backup-status",
            "usage": "",
            "description": "Where the backup stands, and how long the node waits for it.",
        },
        {
            "name": "backup-compact",
            "usage": "[force]",
            "description": "Fold the backup's history into one snapshot; the node goes on.",
        },
    ],
    "subscriptions": ["shutdown"],
    "hooks": [{"name": "db_write"}],
}
_CONTINUE = {"result": "continue"}
_IDLE_MS = 100


class Plugin:
    """The worker: one process that reads lightningd's messages and answers them in order."""

    def __init__(self) -> None:
        self._lightningd = lightningd_above()
        self._mailbox = jsonrpc.Mailbox()
        self._reader = jsonrpc.Reader(0, self._mailbox)
        self._replicator = Replicator(os.getcwd(), lambda message: self._log("info", message))
        self._halted: str | None = None
        self._asked = False
        self._rpc: rpc.Request | None = None
        self._leave_at: float | None = None
        self._poll = select.poll()
        self._compaction = CompactCommand(self._replicator, self._log, self._poll)
        self._poll.register(0, select.POLLIN)
        self._child_ended = _wake_on_children()
        self._poll.register(self._child_ended, select.POLLIN)
        self._guard: guard.Guard | None = None
        self._spawn_guard()

    def run(self) -> None:
        """Serves lightningd until it closes the pipe, or has shut its other plugins down.

        To be followed by `leave`.
        """
        while True:
            events = self._poll.poll(self._timeout_ms())
            if not events:
                self._write_notes()
            if self._guard is None:
                self._spawn_guard()
            for fd, _ in events:
                if fd == 0:
                    if not self._read():
                        return
                elif fd == self._child_ended:
                    self._wait_for_children()
                elif self._rpc is not None and fd == self._rpc.fileno():
                    self._take_configuration()
                elif self._compaction.is_at(fd):
                    self._compaction.go_on()
            if self._leave_at is not None and (
                time.monotonic() >= self._leave_at
                or not other_plugins_live(self._lightningd, os.getpid())
            ):
                return

    def _timeout_ms(self) -> float | None:
        if self._leave_at is not None:
            return guard.SHUTDOWN_POLL_S * 1000
        return _IDLE_MS if self._compaction.noted or self._guard is None else None

    def _read(self) -> bool:
        """Reads once, and serves what is whole; `False` when lightningd has closed the pipe."""
        if not self._reader.read():
            return False
        while (text := self._reader.take()) is not None:
            self._serve(text)
            self._reader.drop()
        return True

    def _write_notes(self) -> None:
        self._compaction.noted = False
        try:
            self._replicator.write_notes()
        except BackupError as error:
            self._log("warn", str(error))

    def leave(self) -> NoReturn:
        """Ends this process: what takes time first, then the calls that came meanwhile.

        lightningd may write to its database until our pipe ends. It aborts when that happens while
        it waits for an answer, so nobody else may hold the pipe any more, and nothing may lie
        between the look that finds no message and the pipe's end. One late call is soon followed
        by the next, so the pipe has to be quiet for a while.
        """
        try:
            if self._guard is not None:
                self._guard.dismiss()
            self._write_notes()
            self._compaction.close()
            until = time.monotonic() + guard.LEAVE_S
            while not guard.is_quiet(until) or self._reader.has_begun():
                if not self._read():
                    break
        except BrokenPipeError:  # lightningd is gone
            pass
        except BaseException:  # noqa: BLE001 - told as at the end of any process
            traceback.print_exc()
        finally:
            guard.end_pipe()
            os._exit(0)

    def _serve(self, text: bytes) -> None:
        message = jsonrpc.decode(text)
        if isinstance(message, jsonrpc.Call) or message.method == "db_write":
            self._db_write(message)
            return
        try:
            self._serve_other(message)
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 - nothing of this may end the backup
            why = str(error) if isinstance(error, BackupError) else _fault(error)
            self._log("error", f"{message.method} failed: {why}")
            if bytes(message.id):
                jsonrpc.write(jsonrpc.error(bytes(message.id), why))

    def _serve_other(self, message: Message) -> None:
        method = message.method
        if method == "shutdown":
            self._compaction.forget_request()
            self._leave_at = time.monotonic() + guard.SHUTDOWN_S
        elif not bytes(message.id):
            return
        elif method == "getmanifest":
            self._answer(message, MANIFEST)
        elif method == "init":
            self._init(message)
        elif method == "backup-status":
            self._answer(message, self._status())
        elif method == "backup-compact":
            backend = None if self._leave_at is not None else self._replicator.backend
            self._compaction.start(bytes(message.id), backend, message.params)
        else:
            jsonrpc.write(jsonrpc.error(bytes(message.id), f"cln-backup has no command {method}."))

    def _answer(self, message: Call | Message, result: object) -> None:
        jsonrpc.write(jsonrpc.answer(bytes(message.id), result))

    def _log(self, level: str, message: str) -> None:
        jsonrpc.write(jsonrpc.log(level, message))

    def _db_write(self, message: Call | Message) -> None:
        if not self._asked:
            from cln_backup.plugin import logbridge

            logbridge.forward(self._log)
        self._asked = True
        if self._halted is None:
            try:
                call = jsonrpc.decode_db_write(message)
                self._replicator.db_write(call.data_version, call.writes)
            except BackupError as error:
                self._halted = str(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the node must not go on
                self._halted = (
                    f"{_fault(error)} The node is halted before it commits anything that the "
                    "backup may not have."
                )
        if self._halted is None:
            self._answer(message, _CONTINUE)
            return
        self._log("error", self._halted)
        self._answer(message, {"result": "halt", "reason": self._halted})

    def _init(self, message: Message) -> None:
        init = jsonrpc.decode_init(message.params)
        if init.options.get(_OPTION):
            self._log(
                "warn",
                "The `--backup-destination` option is deprecated and will be removed in future "
                "versions of the backup plugin. It is unused: the destination is what the "
                "`backup.lock` file in the network directory says. Remove it from the "
                "configuration.",
            )
        rpc_path = os.path.join(init.configuration.lightning_dir, init.configuration.rpc_file)
        if init.configuration.startup and not self._asked:
            self._refuse_unprotected()
        self._answer(message, {})
        self._compaction.begin(init.options.get("backup-scratch-dir"))
        try:
            self._rpc = rpc.Request(rpc_path, "listconfigs")
        except OSError as error:
            self._log("warn", f"Cannot ask lightningd how this plugin was loaded: {error}")
        else:
            self._poll.register(self._rpc.fileno(), select.POLLIN)
        from cln_backup.compaction import compactor  # noqa: F401  # now, while the node waits for nothing

    def _refuse_unprotected(self) -> NoReturn:
        """Keeps a node from coming up whose database lightningd reports to no plugin."""
        self._log(
            "error",
            "This node is NOT protected: lightningd asked for no backup of its database, which it "
            "does with SQLite only. With PostgreSQL, use its own replication, and remove this "
            "plugin from the configuration. The node is stopped.",
        )
        if os.environ.get("LIGHTNINGD_PLUGIN"):  # its parent is what it says it is
            # While plugins start, lightningd hears no `stop`; nothing else ends it at once. It is
            # left the time to write down why.
            time.sleep(1)
            os.kill(self._lightningd, signal.SIGTERM)
        while os.read(0, jsonrpc.MAILBOX_BYTES):
            pass  # init stays unanswered, so the start does not go on
        self.leave()

    def _take_configuration(self) -> None:
        """Learns by lightningd's answer that the node is up, and how this plugin was loaded."""
        assert self._rpc is not None
        important = True
        with contextlib.suppress(ConnectionError):  # then there is nobody to be warned
            configuration = self._rpc.answer()
            if configuration is None:
                return
            self._replicator.patience.node_is_up()
            important = rpc.is_important(configuration, sys.argv[0], _OPTION)
        self._poll.unregister(self._rpc.fileno())
        self._rpc.close()
        self._rpc = None
        if not important:
            self._log(
                "warn",
                "THE BACKUP PLUGIN IS NOT LOADED AS IMPORTANT. Should all its processes die, this "
                "node goes on without a backup, and says nothing. In the configuration, write "
                f"important-plugin={os.path.realpath(sys.argv[0])} in the place of plugin=",
            )

    def _status(self) -> dict[str, object]:
        backend = self._replicator.backend
        if backend is None:
            return {"protected": False, "halted": self._halted}
        times = self._replicator.answer_times_us()
        return {
            "protected": self._halted is None,
            "halted": self._halted,
            "backend_url": redacted(backend.url),
            "version": backend.version,
            **size_of(backend),
            "last_change_age_s": self._replicator.last_change_age_s(),
            "last_compaction_at": self._replicator.last_compaction_at(),
            "compacting": self._compaction.is_under_way(),
            "answer_p50_us": None if times is None else times[0],
            "answer_p99_us": None if times is None else times[1],
            "release": __version__,
        }

    def _wait_for_children(self) -> None:
        """Some child has ended; if it was the guard, starts another."""
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
                self._spawn_guard()

    def _spawn_guard(self) -> None:
        """Starts a guard; where the system has no process to spare, it is tried again soon."""
        with contextlib.suppress(OSError):
            self._guard = guard.spawn(self._mailbox, self._lightningd, MANIFEST)


def _wake_on_children() -> int:
    """A pipe that becomes readable when a child ends."""
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
    return readable


def _fault(error: Exception) -> str:
    """Names an error that is none of ours, without its text, which may hold anything."""
    if isinstance(error, ImportError):
        return str(broken_installation(error))
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = "an unknown place"
    if frame is not None:
        place = f"{os.path.basename(frame.tb_frame.f_code.co_filename)}:{frame.tb_lineno}"
    return f"cln-backup has a fault ({type(error).__name__} in {place}); please report this."


def main() -> None:
    """Runs the plugin; lightningd starts it."""
    if sys.stdin.isatty() or {"--help", "--version"} & set(sys.argv[1:]):
        sys.stderr.write(
            f"cln-backup {__version__} is a plugin: lightningd starts it. In lightningd's "
            f"configuration, write\n\n    important-plugin={os.path.realpath(sys.argv[0])}\n\n"
            "after `backup-cli init` has set up the backup.\n"
        )
        sys.exit(0 if len(sys.argv) > 1 else 2)
    # The node decides when its backup ends: it closes the pipe, whatever signal comes first.
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    plugin = Plugin()
    # Whatever else is raised ends this process, and the guard halts the node.
    with contextlib.suppress(BrokenPipeError):  # lightningd is gone
        plugin.run()
    plugin.leave()


if __name__ == "__main__":
    main()
