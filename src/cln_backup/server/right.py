"""The right to write to one backup: its holder, and the handover to another connection."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from cln_backup.model.errors import WriterConflict

if TYPE_CHECKING:
    from threading import Condition

_GRACE_S = 4.0
"""How long a new writer waits for the old one's connection to be detected as dead, or to end."""

_GRACE_LOCAL_S = 0.1
_TAKEN = "another connection takes over the right to write"


class Client(Protocol):
    """A connection, as its node sees it."""

    peer: str
    who: str
    local: bool

    def probe(self) -> bool:
        """Probes whether the other side is still there; if not, the connection ends.

        Returns whether the other side has closed it already, and only this one has not yet.
        """

    def evict(self, why: str) -> None:
        """Ends the connection; its client may reconnect and is admitted again."""


class Right:
    """The right to write; use it only while holding the condition's lock.

    Attributes:
        holder: the connection that has it.
        epoch: number of writers since the server was started.
    """

    def __init__(self, changed: Condition) -> None:
        self.holder: Client | None = None
        self.epoch = 0
        self._session = ""
        self._began_at = 0.0
        self._changed = changed

    def held_s(self) -> float:
        """For how long the holder's session has had the right, with gaps; 0 without a holder."""
        return 0.0 if self.holder is None else time.monotonic() - self._began_at

    def make_free(self, session: str, *, resume: bool) -> None:
        """Makes sure that no connection has the right, so that a session may `take` it.

        A session ends its own previous connection. For another session's connection it waits,
        without the lock, for as long as it takes to find out that the connection is dead.

        Raises:
            WriterConflict: another session has it, or has taken it from this one meanwhile.
        """
        if resume and self._session and session != self._session:
            raise WriterConflict(
                "Another process has taken over the right to write to this backup. This one "
                "must not continue: if it is a second copy of the node, never start it again."
            )
        holder = self.holder
        if holder is None:
            return
        if session and session == self._session:
            self._evict(holder)
            return
        has_left = holder.probe()
        grace_s = _GRACE_LOCAL_S if holder.local and not has_left else _GRACE_S
        if not self._changed.wait_for(lambda: self.holder is not holder, grace_s):
            raise WriterConflict(
                "The backup is being written by "
                f"{holder.who or 'a node'} at {holder.peer}, whose connection is alive; "
                "this process wrote nothing. Two nodes must never share a backup. If that "
                "process can never run again, run `backup-cli takeover URL`."
            )
        if self.holder is not None:
            raise WriterConflict("Another writer was faster; this process wrote nothing.")

    def take(self, client: Client, session: str) -> None:
        """Gives a connection the right, which is free."""
        assert self.holder is None
        self.holder = client
        if not session or session != self._session:
            self._begin(session)

    def revoke(self, session: str) -> None:
        """Ends the holder's right for good; the session gets it when it asks for it."""
        if self.holder is not None:
            self._evict(self.holder)
        self._begin(session)

    def release(self, client: Client) -> None:
        """Frees the right if a connection, which has ended, had it."""
        if self.holder is client:
            self.holder = None
            self._changed.notify_all()

    def require(self, client: Client) -> None:
        """Raises `WriterConflict` if a connection does not have the right."""
        if self.holder is not client:
            raise WriterConflict("Another process has taken over the right to write.")

    def _begin(self, session: str) -> None:
        self._session = session
        self._began_at = time.monotonic()
        self.epoch += 1

    def _evict(self, holder: Client) -> None:
        holder.evict(_TAKEN)
        self.holder = None
        self._changed.notify_all()
