"""One call, from its statements to its commit, with whatever is to go wrong in it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from simulator import crash
from simulator.calls import Call, hook_params
from simulator.database import DatabaseError, NodeDatabase
from simulator.plugin import PluginFaultError
from simulator.settings import Exit, FatalError
from simulator.wire import Message, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulator.crash import CrashPoint, CrashVfs
    from simulator.plugin import Plugin
    from simulator.report import Report


class CallRunner:
    """Makes calls on a database, asking a plugin before each commit.

    Args:
        database: open.
        report: where calls are counted.
        last_words: called when the process is about to kill itself, with the crash point.
        vfs: needed for crash points in a commit.
    """

    def __init__(
        self,
        database: NodeDatabase,
        report: Report,
        last_words: Callable[[CrashPoint], None],
        vfs: CrashVfs | None = None,
    ) -> None:
        self._database = database
        self._report = report
        self._last_words = last_words
        self._vfs = vfs

    def make(self, call: Call, plugin: Plugin | None, point: CrashPoint | None) -> bool:
        """Make a call; returns whether a transaction was committed.

        Args:
            call: the one that comes next.
            plugin: the plugin to ask; `None` if none has the hook.
            point: what goes wrong in this call.

        Raises:
            FatalError: the node cannot continue; nothing was committed.
        """
        try:
            self._database.apply(call)
            if point is not None and point.point == "before-hook":
                self._die(point)
            if plugin is not None:
                self._ask(call, plugin, point)
            if point is not None and point.point in (crash.IN_PLUGIN, "after-answer"):
                self._die(point)
            if not call.rider:
                self._commit(point)
        except DatabaseError as error:
            raise FatalError(Exit.DATABASE, str(error)) from None
        self._report.data_version = self._database.data_version
        self._report.next_call = call.index + 1
        return not call.rider

    def _ask(self, call: Call, plugin: Plugin, point: CrashPoint | None) -> None:
        params = hook_params(call)
        sent: Callable[[], None] | None = None
        if point is not None and point.point == crash.IN_PLUGIN:
            _, request = plugin.hook_request(params)
            size = len(request) if point.size_bytes is None else point.size_bytes
            self._last_words(point)
            plugin.write_part(request, size)
            crash.die()
        if point is not None and point.point == crash.KILL_PLUGIN and point.when == "sent":
            sent = _killing(plugin, point.delay_s)
        if plugin.is_leaving and plugin.has_ended():
            # Between two looks of the node at its pipes: no plugin can do anything about it.
            raise FatalError(
                Exit.PLUGIN_IN_HOOK, f"Plugin '{plugin.name}' had ended before it was asked"
            )
        try:
            answer_ns, answer = plugin.db_write(params, sent=sent)
        except PluginFaultError as error:
            raise FatalError(
                Exit.PLUGIN_IN_HOOK,
                f"Plugin '{plugin.name}' ended while the node waited for its answer to the"
                f" db_write hook: {error}",
            ) from None
        _check_answer(plugin.name, answer)
        self._report.answer_ns.append(answer_ns)
        if self._report.spawn_to_first_db_write_us is None:
            since_ns = time.perf_counter_ns() - plugin.spawned_ns
            self._report.spawn_to_first_db_write_us = since_ns / 1000

    def _commit(self, point: CrashPoint | None) -> None:
        if point is None or point.point != crash.IN_COMMIT:
            self._database.commit()
            self._report.committed += 1
            return
        assert self._vfs is not None
        self._last_words(point)
        self._vfs.arm(point.step)
        self._database.commit()
        raise FatalError(Exit.NOT_REACHED, f"the commit ended without passing {point}")

    def _die(self, point: CrashPoint) -> None:
        self._last_words(point)
        crash.die()


def _killing(plugin: Plugin, delay_s: float) -> Callable[[], None]:
    if not delay_s:
        return plugin.signal_kill
    timer = threading.Timer(delay_s, plugin.signal_kill)
    timer.daemon = True
    return timer.start


def _check_answer(name: str, answer: Message) -> None:
    """Take `continue` and nothing else, with lightningd's words (`db_hook_response`)."""
    text = encode(answer).decode("utf-8", "backslashreplace")
    result = answer.get("result")
    if result is None:
        raise FatalError(
            Exit.REFUSED,
            f"Plugin '{name}' returned an invalid response to the db_write hook: {text}",
        )
    if not isinstance(result, dict) or "result" not in result:
        raise FatalError(
            Exit.REFUSED,
            f"Plugin '{name}' returned an invalid result to the db_write hook: {text}",
        )
    if result["result"] != "continue":
        raise FatalError(Exit.REFUSED, f"Plugin '{name}' returned failed db_write: {text}.")
