"""Keeps a conversation with a server alive: reconnects when it is lost, up to a deadline."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from cln_backup.backends.events import Event, Noticed
from cln_backup.backends.socket.dial import STALL_S
from cln_backup.backends.socket.session import open_session
from cln_backup.backends.socket.token_file import read_token
from cln_backup.model.errors import Unreachable
from cln_backup.storage import interruption
from cln_backup.wire import packets as wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.socket.session import Session
    from cln_backup.backends.socket.url import SocketUrl

    T = TypeVar("T")

_THIS_MACHINE = ("127.0.0.1", "::1", "localhost")
_ATTEMPT_S = 10.0
_LEAST_S = 0.5
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_SAY_EVERY_S = 30.0


class Link:
    """The link to one server, in one role.

    Attributes:
        session: the conversation, while there is one.
        had: whether there was a conversation before, which a new one resumes.
    """

    def __init__(self, url: SocketUrl, role: str, name: str, on_event: OnEvent) -> None:
        self.url = url
        self.session: Session | None = None
        self.had = False
        self._role = role
        self._name = name
        self._on_event = on_event

    def connected(self, timeout_s: float, user: object = None) -> Session:
        """The conversation; a new one if there is none that `user` could use.

        Raises:
            OSError: the connection failed; a retry may succeed.
            BackupError: the server refused.
        """
        if self.session is not None and self.session.used_by not in (None, user):
            self.close()  # a reader stopped in the middle
        if self.session is None:
            token = read_token(self.url.token_file) if self.url.token_file else ""
            # On a fast link, compression would only cost the node time.
            short = self.url.proxy is None and self.url.server.host in _THIS_MACHINE
            hello = wire.Hello(
                self._role,
                self.url.node,
                token,
                self._name,
                self.had,
                deflate=not short,
                who=f"process {os.getpid()} ({os.path.basename(sys.argv[0])})",
            )
            self.session = open_session(
                self.url, hello, min(_ATTEMPT_S, timeout_s), min(STALL_S, timeout_s / 2)
            )
            self.had = True
        return self.session

    def until(self, limit_s: float, attempt: Callable[[Session], T], user: object = None) -> T:
        """Runs `attempt` in a conversation, and retries when the connection is lost.

        `attempt` must find out by itself what a previous attempt has done.

        A silent connection counts as lost from the request on, or from `STALL_S` before that is
        detected. No wait takes more than half of the remaining time, so that there is always time
        for another connection. It retries until the limit, with a last attempt when it is reached,
        and hardly longer.

        Args:
            limit_s: how long to retry after the loss.
            attempt: the function to run.
            user: the reader of a stream of changes, if each attempt is a part of one.

        Raises:
            Unreachable: the time limit was reached.
            BackupError: an error of `attempt`, or a refusal of the server.
        """
        lost_at: float | None = None
        said_at = 0.0
        pause_s = 0.0  # a server that was restarted is available at once
        while True:
            began_at = time.monotonic()
            left_s = limit_s if lost_at is None else lost_at + limit_s - began_at
            left_s = max(_LEAST_S, left_s)
            try:
                session = self.connected(left_s, user)
                session.bound_stall(min(STALL_S, left_s / 2))
                result = attempt(session)
            except OSError as error:
                self.close()
                now = time.monotonic()
                lost_at = max(began_at, now - STALL_S) if lost_at is None else lost_at
                left_s = lost_at + limit_s - now
                if left_s <= 0:
                    raise Unreachable(self._explain(error, limit_s)) from error
                if (pause_s and said_at == 0.0) or now - max(said_at, lost_at) >= _SAY_EVERY_S:
                    said_at = now
                    text = (
                        f"No connection to the backup server {self.url.server} ({_reason(error)}). "
                        f"Retrying for {int(left_s)} more seconds."
                    )
                    self._on_event(Event(Noticed.WAITING, text))
                with interruption.at_once():
                    time.sleep(min(pause_s, left_s))
                pause_s = min(max(_FIRST_PAUSE_S, 2 * pause_s), _LONGEST_PAUSE_S)
            else:
                if said_at:
                    assert lost_at is not None
                    waited_s = time.monotonic() - lost_at
                    text = (
                        f"The backup server {self.url.server} answers again, after {waited_s:.1f} "
                        "seconds."
                    )
                    self._on_event(Event(Noticed.BACK, text))
                return result

    def _explain(self, error: OSError, limit_s: float) -> str:
        hint = ""
        if isinstance(error, ConnectionResetError) and not self.had:
            hint = " Does the server use TLS but not the URL, or the other way round?"
        return (
            f"The backup server {self.url.server} could not be reached for {limit_s:.0f} seconds: "
            f"{_reason(error)}.{hint} Everything that was answered before is stored there. Check "
            f"that the server and the network are up; then start again. {self._advice(limit_s)}"
        )

    def _advice(self, limit_s: float) -> str:
        """How to extend this wait, if that is possible."""
        if limit_s >= self.url.deadline_s:
            return "The option deadline=SECONDS in the URL sets how long to wait."
        return (
            "The URL's deadline applies only when the node is up: while it starts, its other "
            "plugins would time out, and commands do not wait longer either. Start the server "
            "first."
        )

    def close(self) -> None:
        """Ends the conversation."""
        if self.session is not None:
            self.session.close()
            self.session = None


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
