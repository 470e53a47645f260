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
        self.was_called = True
        if self.halted is None:
            try:
                call = jsonrpc.decode_db_write(message)
                self._replicator.db_write(call.data_version, call.writes)
            except Exception as error:  # noqa: BLE001 - whatever it is, the node must not continue
                self.halted = _reason(error)
            else:
                jsonrpc.write(jsonrpc.proceed(bytes(message.id)))
                return
        self._log("error", self.halted)
        answer = {"result": "halt", "reason": self.halted}
        jsonrpc.write(jsonrpc.answer(bytes(message.id), answer))

    def node_is_up(self) -> bool:
        """Call it before `init` is answered; returns whether the node may continue."""
        if self.halted is None:
            try:
                self._replicator.node_is_up()
            except Exception as error:  # noqa: BLE001 - as in `answer`
                self.halted = _reason(error)
        return self.halted is None

    def settle(self) -> None:
        """Does the rest of a call after its answer. An error halts the node at the next call."""
        if self.halted is None:
            try:
                self._replicator.settle()
            except Exception as error:  # noqa: BLE001 - as in `answer`
                self.halted = _reason(error)
                self._log("error", self.halted)


def _reason(error: Exception) -> str:
    """Why the node is halted."""
    if isinstance(error, BackupError):
        return str(error)
    return (
        f"{fault(error)} The node is halted before it commits anything that the backup may not "
        "have."
    )
