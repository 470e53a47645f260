"""A node's process from its start to its end, in lightningd's order (`lightningd/lightningd.c`)."""

from __future__ import annotations

import os
import random
import selectors
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from simulator.build import place_database
from simulator.calls import Call, variant
from simulator.commands import Commands
from simulator.crash import KILL_PLUGIN, VFS, CrashPlan, CrashPoint, CrashVfs
from simulator.database import DatabaseError, NodeDatabase
from simulator.host import PluginHost
from simulator.nodelog import Level, NodeLog
from simulator.pidfile import PidFile
from simulator.plugin import Plugin, State
from simulator.report import Report
from simulator.rpc import RPC_FILE, Connection, RpcServer
from simulator.runner import CallRunner
from simulator.settings import Exit, FatalError
from simulator.source import CallQueue, SourceError

if TYPE_CHECKING:
    from simulator.settings import Settings

HOOK = "db_write"


class Node:
    """One process of a node, which moves to its network directory. `run` does it all, once.

    Attributes:
        host: holds the plugin.
    """

    def __init__(self, settings: Settings) -> None:
        os.makedirs(settings.directory, mode=0o700, exist_ok=True)
        os.chdir(settings.directory)
        self.settings = settings
        self.report = Report()
        self._stop_asked_by: tuple[Connection, object] | None = None
        self._log = NodeLog(settings.log_file, Level.UNUSUAL if settings.quiet else Level.INFO)
        self._selector = selectors.DefaultSelector()
        self.host = PluginHost(settings, self.report, self._selector, self.log, self.stop)
        self._stopping: str | None = None
        self._exit_code: int = Exit.DONE
        self._variant = settings.variant
        self._plan = CrashPlan(settings.crash_points)
        self._vfs = CrashVfs() if self._plan.needs_vfs else None
        self._queue = CallQueue(())
        self._rpc: RpcServer | None = None
        self._pid_file: PidFile | None = None
        self._database: NodeDatabase
        self._runner: CallRunner

    def run(self) -> int:
        """Start, make the calls, stop; returns the exit code.

        A fatal end does not return: the process ends where it is, and nothing is closed.
        """
        self._catch_signals()
        try:
            if self.settings.plugin is not None:
                self.host.start(self.settings.plugin)
            if self.settings.manifest_only:
                return self._end("manifest only")
            if self.settings.pid_file is not None:
                self._pid_file = PidFile(self.settings.pid_file)
            self._open_database()
            self._replay_startup()
            self._replay(None)
            while self.settings.hold and self._stopping is None:
                self.host.serve(None)
            self._shut_down()
        except FatalError as fatal:
            self._fatal(fatal)
        if self.report.unprotected_commits:
            text = f"{self.report.unprotected_commits} transactions were committed unprotected"
            self.log(Level.UNUSUAL, "simulator", text)
        return self._end(self._stopping or "all calls made")

    def log(self, level: Level, source: str, text: str) -> None:
        """Write a line to the node's log."""
        self._log.write(level, source, text)

    def stop(self, exit_code: int, reason: str) -> None:
        """Ask the node to shut down when it has finished the call it is in."""
        if self._stopping is None:
            self._stopping, self._exit_code = reason, exit_code

    def _stop_for(self, connection: Connection, request_id: object) -> None:
        self.log(Level.UNUSUAL, "lightningd", "JSON-RPC shutdown")
        self._stop_asked_by = (connection, request_id)
        self.stop(0, "stop")

    def _catch_signals(self) -> None:
        if not self.settings.shutdown.on_sigterm:
            return
        read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_end)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda caught, _: self.stop(0, signal.Signals(caught).name))
        self._selector.register(
            read_end, selectors.EVENT_READ, lambda _mask: os.read(read_end, 4096)
        )

    def _open_database(self) -> None:
        settings = self.settings
        try:
            if settings.before is not None and not os.path.exists(settings.wallet):
                place_database(settings.before, settings.wallet)
            self._database = NodeDatabase(
                settings.wallet,
                wal=settings.wal,
                synchronous=settings.synchronous,
                vfs=None if self._vfs is None else VFS,
            )
        except (OSError, DatabaseError) as error:
            raise FatalError(Exit.DATABASE, str(error)) from None
        self.report.data_version = self._database.data_version
        self._runner = CallRunner(self._database, self.report, self._last_words, self._vfs)
        calls = settings.calls_from(self._database.data_version)
        self._queue = CallQueue(calls)

    def _replay_startup(self) -> None:
        """Make the calls that lie before `init`, and send it."""
        given = self.settings.plugin
        if given is not None:
            self._replay(given.before_init)
        if given is not None or self.settings.hold:
            commands = Commands(self.settings, self.host, self.report, self._stop_for)
            self._rpc = RpcServer(RPC_FILE, self._selector, commands.take)
        if given is not None and self.host.plugin is not None and self._stopping is None:
            during = given.during_init
            self.host.configure(self.host.plugin, given, lambda: self._replay(during))

    def _replay(self, limit: int | None) -> None:
        """Make calls until they end, the limit is reached or the node is to stop."""
        shutdown = self.settings.shutdown
        keep = shutdown.late_calls + shutdown.after_plugin if self.settings.plugin else 0
        period_s = 1 / self.settings.rate if self.settings.rate else 0.0
        due_s = time.monotonic()
        self.host.serve(0)
        while self._stopping is None and limit != 0:
            call = self._next_call(keep)
            if call is None:
                return
            self._make(call)
            limit = None if limit is None else limit - 1
            due_s += period_s
            while True:
                wait_s = max(0.0, due_s - time.monotonic()) if period_s else 0.0
                self.host.serve(wait_s)
                if wait_s == 0.0 or self._stopping is not None:
                    break

    def _next_call(self, keep: int) -> Call | None:
        try:
            call = self._queue.take(keep=keep)
        except (SourceError, OSError, ValueError) as error:
            raise FatalError(Exit.SOURCE, str(error)) from None
        if call is not None and self._variant is not None and not call.rider:
            call, self._variant = variant(call, self._variant), None
        return call

    def _make(self, call: Call) -> None:
        point = self._plan.at(call.index)
        if point is not None and point.point == KILL_PLUGIN and point.when == "before":
            if self.host.plugin is not None:
                self.host.plugin.signal_kill(wait=True)
                self.host.serve(0)
            if self._stopping is not None:
                self._queue.give_back(call)
                return
        asked = self.host.plugin
        if asked is not None and HOOK not in asked.manifest.hooks:
            asked = None
        committed = self._runner.make(call, asked, point)
        if committed and asked is None and self.settings.plugin is not None:
            self.report.unprotected_commits += 1

    def _shut_down(self) -> None:
        """Take leave of the plugin, then of the rest (`shutdown_plugins`)."""
        shutdown = self.settings.shutdown
        self.host.shutting_down = True
        if self._rpc is not None:
            self._rpc.stop_listening()
        plugin = self.host.plugin
        if plugin is not None:
            plugin.forget_requests()
            if plugin.state is State.INIT_COMPLETE and plugin.manifest.subscribed("shutdown"):
                plugin.is_leaving = True
                if shutdown.storm is None:
                    self._await_plugin_end(plugin)
                else:
                    self._storm(plugin, random.Random(shutdown.storm))
            self.host.leave()
        if self.settings.plugin is not None:
            for _ in range(shutdown.after_plugin):
                call = self._next_call(0)
                if call is None:
                    break
                self.report.after_plugin_commits += self._runner.make(
                    call, None, self._plan.at(call.index)
                )
        self._database.close()
        if self._pid_file is not None:
            self._pid_file.remove()
        if self._stop_asked_by is not None:
            connection, request_id = self._stop_asked_by
            connection.result(request_id, {"result": "Shutdown complete"})
        if self._rpc is not None:
            self._rpc.close()

    def _await_plugin_end(self, plugin: Plugin) -> None:
        shutdown = self.settings.shutdown
        late = shutdown.late_calls
        # Late writes are other plugins' doing: one of those is there as long as they last.
        other = subprocess.Popen(["cat"], stdin=subprocess.PIPE) if late else None
        plugin.notify("shutdown", {"shutdown": {}})
        started_s = time.monotonic()
        while self._has_plugin:
            passed_s = time.monotonic() - started_s
            if passed_s >= shutdown.timeout_s:
                text = f"{plugin.name}: failed to self-terminate in time, killing."
                self.log(Level.DEBUG, "lightningd", text)
                return
            if not late and other is not None:
                other.communicate()
                other = None
            made = shutdown.late_calls - late
            next_s = (made + 1) * shutdown.late_interval_s if late else shutdown.timeout_s
            self.host.serve(max(0.0, min(next_s, shutdown.timeout_s) - passed_s))
            due = time.monotonic() - started_s >= next_s
            if late and due and self._has_plugin:
                call = self._next_call(shutdown.after_plugin)
                late = 0 if call is None else late - 1
                if call is not None:
                    self._make(call)
                    self.report.late_calls += 1
        self.report.plugin_exit_s = time.monotonic() - started_s

    def _storm(self, plugin: Plugin, chance: random.Random) -> None:
        """Make calls, some at once and some after a pause, until the plugin has gone."""
        started_s = time.monotonic()
        other_until_s = started_s + chance.choice((0.0, chance.uniform(0.0, 0.2)))
        other: subprocess.Popen[bytes] | None = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        plugin.notify("shutdown", {"shutdown": {}})
        while self._has_plugin:
            now_s = time.monotonic()
            if other is not None and now_s >= other_until_s:
                other.communicate()
                other = None
            if now_s - started_s >= self.settings.shutdown.timeout_s:
                break
            self.host.serve(chance.choice((0.0, 0.0, chance.expovariate(2000), 0.01)))
            if self.host.plugin is not plugin:
                break
            call = self._next_call(self.settings.shutdown.after_plugin)
            if call is not None:
                self._make(call)
                self.report.late_calls += 1
        if other is not None:
            other.communicate()
        self.report.plugin_exit_s = time.monotonic() - started_s

    @property
    def _has_plugin(self) -> bool:
        return self.host.plugin is not None

    def _last_words(self, point: CrashPoint) -> None:
        self._end(f"crash: {point}")

    def _fatal(self, fatal: FatalError) -> None:
        sys.stderr.write(f"{fatal}\n")
        self.log(Level.BROKEN, "lightningd", str(fatal))
        self._exit_code = fatal.code
        self._end(f"fatal: {fatal}")
        sys.stderr.flush()
        os._exit(fatal.code)

    def _end(self, reason: str) -> int:
        self.report.exit_reason, self.report.exit_code = reason, int(self._exit_code)
        if self.settings.report is not None:
            self.report.write(self.settings.report)
        return int(self._exit_code)
