"""The node's side of its plugin: starting it, configuring it, losing it (`lightningd/plugin.c`)."""

from __future__ import annotations

import selectors
import time
from typing import TYPE_CHECKING

from simulator.manifest import ManifestError, parse_manifest
from simulator.nodelog import Level
from simulator.plugin import Plugin, PluginFaultError, State
from simulator.rpc import PLUGIN_TERMINATED, RPC_FILE
from simulator.settings import Exit, FatalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulator.plugin import Answered
    from simulator.report import Report
    from simulator.settings import PluginSettings, Settings
    from simulator.wire import Message

FEATURES = {"init": "08a0882a8a59a1", "node": "88a0882a8a59a1", "channel": "", "invoice": ""}


class PluginHost:
    """Holds the plugin while there is one.

    Args:
        settings: of the node.
        report: takes what the start took.
        selector: watches the pipes; its keys' data are functions that take the event mask.
        log: writes to the node's log: level, source, text.
        stop: called with an exit code and a reason when the node has to end with the plugin.

    Attributes:
        plugin: the plugin, `None` before the start and when it is lost.
        important: whether the node ends with the plugin.
        shutting_down: set when the node no longer minds losing it.
    """

    def __init__(
        self,
        settings: Settings,
        report: Report,
        selector: selectors.BaseSelector,
        log: Callable[[Level, str, str], None],
        stop: Callable[[int, str], None],
    ) -> None:
        self.plugin: Plugin | None = None
        self.important = settings.plugin is not None and settings.plugin.important
        self.shutting_down = False
        self._settings = settings
        self._report = report
        self._selector = selector
        self._log = log
        self._stop = stop
        self._watching_output = False

    def start(self, given: PluginSettings) -> None:
        """Start the plugin and take its manifest.

        Raises:
            FatalError: it cannot be started, is important and had to go, takes too long, or does
                not know an option that was given for it.
        """
        source = f"plugin-{given.name}"
        try:
            plugin = Plugin(
                given.command,
                given.name,
                self._settings.directory,
                lambda level, text: self._log(level, source, text),
            )
        except OSError as error:
            raise FatalError(
                Exit.PLUGIN, f"error starting plugin '{given.name}': {error}"
            ) from None
        self.plugin = plugin
        self._selector.register(plugin.stdout_fd, selectors.EVENT_READ, self._read)
        answers: list[Message] = []
        plugin.request("getmanifest", {"allow-deprecated-apis": False}, answers.append)
        taken = False
        if self._has_answer(answers, given.timeout_s):
            since_ns = time.perf_counter_ns() - plugin.spawned_ns
            self._report.spawn_to_manifest_us = since_ns / 1000
            taken = self._take_manifest(plugin, answers[0])
        if self.important and not taken:
            raise FatalError(
                Exit.PLUGIN, "Could not initialize the plugins, see above for details."
            )
        try:
            plugin.manifest.option_values(given.options)
        except ManifestError as error:
            raise FatalError(Exit.PLUGIN, str(error)) from None

    def configure(
        self, plugin: Plugin, given: PluginSettings, meanwhile: Callable[[], None]
    ) -> None:
        """Send `init`, do something meanwhile, and wait for the answer.

        Raises:
            FatalError: it takes too long.
        """
        answers: list[Message] = []
        configuration = {
            "lightning-dir": self._settings.directory,
            "rpc-file": RPC_FILE,
            "startup": True,
            "network": self._settings.network,
            "feature_set": FEATURES,
        }
        options = plugin.manifest.option_values(given.options)
        started_ns = time.perf_counter_ns()
        plugin.request("init", {"options": options, "configuration": configuration}, answers.append)
        plugin.state = State.AWAITING_INIT_RESPONSE
        meanwhile()
        if not self._has_answer(answers, given.timeout_s):
            return
        self._report.init_us = (time.perf_counter_ns() - started_ns) / 1000
        result = answers[0].get("result")
        if isinstance(result, dict) and "disable" in result:
            self.important = False
            self.lose(Level.DEBUG, f"disabled itself at init: {result['disable']}")
            return
        plugin.state = State.INIT_COMPLETE

    def serve(self, timeout_s: float | None) -> None:
        """Serve whatever the selector watches once, waiting at most this long."""
        if self.plugin is not None:
            if self.plugin.fault is not None:
                self.lose(self.plugin.fault.level, str(self.plugin.fault))
            else:
                self._watch_output(self.plugin)
        for key, mask in self._selector.select(timeout_s):
            if key.fd in self._selector.get_map():  # one may close another
                key.data(mask)

    def lose(self, level: Level, reason: str) -> None:
        """Kill the plugin and continue without it, unless it is important (`destroy_plugin`)."""
        plugin = self.plugin
        assert plugin is not None
        self._log(level, f"plugin-{plugin.name}", f"Killing plugin: {reason}")
        waiting = self._drop(plugin)
        plugin.kill()
        if self.shutting_down:
            return
        for answered in waiting:
            text = "Plugin terminated before replying to RPC call."
            error = {"code": PLUGIN_TERMINATED, "message": text}
            answered({"jsonrpc": "2.0", "error": error})
        if self.important:
            text = "Plugin marked as important, shutting down lightningd!"
            self._log(Level.BROKEN, f"plugin-{plugin.name}", text)
            self._stop(Exit.PLUGIN, f"important plugin: {reason}")

    def leave(self) -> None:
        """Close the pipes to the plugin, which may live on."""
        if self.plugin is not None:
            plugin = self.plugin
            self._drop(plugin)
            plugin.close()

    def _take_manifest(self, plugin: Plugin, answer: Message) -> bool:
        try:
            manifest = parse_manifest(answer)
        except ManifestError as error:
            self.lose(Level.UNUSUAL, str(error))
            return False
        if manifest.disable is not None:
            self.important = False  # also an important plugin may leave in this way
            self.lose(Level.INFO, f"disabled itself: {manifest.disable}")
            return False
        plugin.manifest = manifest
        plugin.state = State.NEEDS_INIT
        return True

    def _has_answer(self, answers: list[Message], timeout_s: float) -> bool:
        """Wait for an answer; `False` when the plugin is gone."""
        deadline_s = time.monotonic() + timeout_s
        while self.plugin is not None:
            if answers:
                return True
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                self.lose(Level.UNUSUAL, f"timed out {self.plugin.state.value}")
                raise FatalError(Exit.PLUGIN, "Can't recover from plugin failure, terminating.")
            self.serve(left_s)
        return False

    def _read(self, _mask: int) -> None:
        assert self.plugin is not None
        try:
            self.plugin.receive()
        except PluginFaultError as fault:
            expected = self.shutting_down and fault.level is Level.INFO
            self.lose(Level.DEBUG if expected else fault.level, str(fault))

    def _watch_output(self, plugin: Plugin) -> None:
        if plugin.has_output == self._watching_output:
            return
        self._watching_output = plugin.has_output
        if self._watching_output:
            self._selector.register(
                plugin.stdin_fd, selectors.EVENT_WRITE, lambda _mask: plugin.flush()
            )
        else:
            self._selector.unregister(plugin.stdin_fd)

    def _drop(self, plugin: Plugin) -> list[Answered]:
        """Stop listening to the plugin; returns who still waits for an answer of it."""
        self.plugin = None
        self._selector.unregister(plugin.stdout_fd)
        if self._watching_output:
            self._selector.unregister(plugin.stdin_fd)
            self._watching_output = False
        return plugin.forget_requests()
