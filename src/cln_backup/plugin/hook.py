"""The hook `db_write`: each call is answered `continue`, or halts the node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup.model.errors import BackupError
from cln_backup.plugin import jsonrpc
from cln_backup.plugin.faults import fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.plugin.jsonrpc import Call, Message
    from cln_backup.plugin.replicator import Replicator

_CONTINUE = {"result": "continue"}


class Hook:
    """Answers `db_write`; once it has halted the node, it always gives the same answer.

    Attributes:
        was_called: whether lightningd reports its database to this plugin.
        halted: why the node is halted; `None` if it is not.
    """

    def __init__(self, replicator: Replicator, log: Callable[[str, str], None]) -> None:
        self._replicator = replicator
        self._log = log
        self.was_called = False
        self.halted: str | None = None

    def answer(self, message: Call | Message) -> None:
        """Stores one call and answers it; the change is on stable storage before `continue`."""
        if not self.was_called:
            from cln_backup.plugin import logbridge

            logbridge.forward(self._log)
        self.was_called = True
        if self.halted is None:
            try:
                call = jsonrpc.decode_db_write(message)
                self._replicator.db_write(call.data_version, call.writes)
            except BackupError as error:
                self.halted = str(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the node must not continue
                self.halted = (
                    f"{fault(error)} The node is halted before it commits anything that the "
                    "backup may not have."
                )
        if self.halted is None:
            jsonrpc.write(jsonrpc.answer(bytes(message.id), _CONTINUE))
            return
        self._log("error", self.halted)
        answer = {"result": "halt", "reason": self.halted}
        jsonrpc.write(jsonrpc.answer(bytes(message.id), answer))
