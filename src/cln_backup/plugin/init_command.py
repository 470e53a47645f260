"""lightningd's `init`: the options, and whether this plugin was loaded as important."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from cln_backup.plugin import jsonrpc
from cln_backup.plugin.manifest import OPTION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

    from cln_backup.node import rpc
    from cln_backup.plugin.hook import Hook
    from cln_backup.plugin.jsonrpc import Message
    from cln_backup.plugin.patience import Patience


_UNPROTECTED: Final = (
    "This node is NOT protected, and is stopped: lightningd reports changes to plugins only if its "
    "database is SQLite. With PostgreSQL, use its own replication, and remove this plugin from the "
    "configuration."
)


class InitCommand:
    """Answers `init`, and then asks lightningd how this plugin was loaded (`listconfigs`)."""

    def __init__(
        self,
        hook: Hook,
        begins: Sequence[Callable[[Mapping[str, object]], None]],
        patience: Patience,
        log: Callable[[str, str], None],
        poll: select.poll,
        lightningd: int,
        *,
        only_looks: Callable[[Callable[[], None]], None],
    ) -> None:
        """Registers with `poll`, which reports when to call `go_on`; `lightningd`: its pid.

        `begins` are the starts of what runs from `init` on; they take the options. `only_looks`
        runs such work, and reports its errors.
        """
        self._hook = hook
        self._begins = begins
        self._only_looks = only_looks
        self._patience = patience
        self._log = log
        self._poll = poll
        self._lightningd = lightningd
        self._rpc: rpc.Request | None = None

    def answer(self, message: Message) -> None:
        """Answers `init`; stops a node that would come up unprotected.

        Raises:
            BrokenPipeError: lightningd is gone.
        """
        init = jsonrpc.decode_init(message.params)
        if init.options.get(OPTION):
            self._log(
                "warn",
                "The `--backup-destination` option is deprecated and will be removed in future "
                "versions of the backup plugin. It is unused: the `backup.lock` file in the "
                "network directory names the destination. Remove the option from the "
                "configuration.",
            )
        rpc_path = os.path.join(init.configuration.lightning_dir, init.configuration.rpc_file)
        if init.configuration.startup and not self._hook.was_called:
            self._stop_node(_UNPROTECTED)
        if not self._hook.node_is_up():
            self._stop_node(str(self._hook.halted))
        jsonrpc.write(jsonrpc.answer(bytes(message.id), {}))
        self._only_looks(self._forward_logs)
        for begin in self._begins:
            self._only_looks(partial(begin, init.options))
        self._only_looks(partial(self._ask, rpc_path))

    def _forward_logs(self) -> None:
        # Imported late: lightningd waits for this program's start.
        from cln_backup.plugin import logbridge

        logbridge.forward(self._log)

    def _ask(self, rpc_path: str) -> None:
        from cln_backup.node import rpc

        try:
            self._rpc = rpc.Request(rpc_path, "listconfigs")
        except OSError as error:
            self._log("warn", f"Cannot ask lightningd how this plugin was loaded: {error}")
        else:
            self._poll.register(self._rpc.fileno(), select.POLLIN)
        from cln_backup.compaction import compactor  # noqa: F401  # now, while the node waits for nothing

    def _stop_node(self, why: str) -> NoReturn:
        """Stops a node that must not continue; `init` stays unanswered."""
        self._log("error", why)
        if os.environ.get("LIGHTNINGD_PLUGIN"):  # the parent is lightningd
            # While plugins start, lightningd does not accept `stop`; only a signal ends it at once.
            # It gets the time to log the reason.
            time.sleep(1)
            os.kill(self._lightningd, signal.SIGTERM)
        while os.read(0, jsonrpc.MAILBOX_BYTES):
            pass  # init stays unanswered, so the start does not continue
        raise BrokenPipeError("lightningd has closed the pipe")

    def is_at(self, fd: int) -> bool:
        """Whether this descriptor of `poll` is the pending answer's."""
        return self._rpc is not None and fd == self._rpc.fileno()

    def go_on(self) -> None:
        """Learns from lightningd's answer that the node is up, and how this plugin was loaded."""
        assert self._rpc is not None
        from cln_backup.node import rpc

        important = True
        with contextlib.suppress(ConnectionError):  # lightningd has ended
            configuration = self._rpc.answer()
            if configuration is None:
                return
            self._patience.node_is_up()
            important = rpc.is_important(configuration, sys.argv[0], OPTION)
        self._poll.unregister(self._rpc.fileno())
        self._rpc.close()
        self._rpc = None
        if not important:
            self._log(
                "warn",
                "THE BACKUP PLUGIN IS NOT LOADED AS IMPORTANT. If all its processes die, this node "
                "continues without a backup, silently. In the configuration, write "
                f"important-plugin={os.path.realpath(sys.argv[0])} instead of plugin=",
            )
