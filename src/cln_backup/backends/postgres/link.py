"""Keeps a connection to a database: connects again when it is lost, up to a deadline."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

from cln_backup.backends.events import Event, Noticed, OnEvent
from cln_backup.backends.postgres.session import Lost, Session
from cln_backup.model.errors import BackupError, StorageError, Unreachable
from cln_backup.storage import interruption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeVar

    from cln_backup.backends.postgres.url import PostgresUrl
    from cln_backup.backends.postgres.values import Value
    from cln_backup.backends.postgres.worth import Worth

    T = TypeVar("T")

_LEAST_S: Final = 0.5
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_SAY_EVERY_S: Final = 30.0
_PROBE_AFTER_S: Final = 3.0
_PROBE_EVERY_S: Final = 10.0
_PROBE_S: Final = 5.0

_IS_AT_WORK: Final = """
SELECT coalesce(wait_event, '') FROM pg_stat_activity
WHERE pid = $1 AND extract(epoch FROM backend_start)::text = $2 AND state <> 'idle'
"""


class Link:
    """The link to one database.

    Attributes:
        session: the connection, while there is one.
        worth: of the server's answers, as of the last connection.
    """

    def __init__(
        self,
        at: PostgresUrl,
        on_event: OnEvent,
        begins: Callable[[Session], None] | None = None,
    ) -> None:
        """Connects at the first use; `begins` as for `use`."""
        self.at = at
        self.session: Session | None = None
        self.worth: Worth | None = None
        self._on_event = on_event
        self._begins = begins
        self._until: float | None = None

    def use(self, begins: Callable[[Session], None]) -> None:
        """Has `begins` called with each new connection, before anything else uses it."""
        self.close()
        self._begins = begins

    def _connected(self, timeout_s: float) -> Session:
        if self.session is not None and self.session.is_broken:
            self.close()
        if self.session is None:
            session = Session(self.at, timeout_s)
            try:
                self._require_worth(session.worth)
                if self._begins is not None:
                    self._begins(session)
            except BaseException:
                session.close()
                raise
            self.session = session
        return self.session

    def _require_worth(self, worth: Worth) -> None:
        if worth.lacks and not self.at.unsafe:
            settings = " and ".join(worth.lacks)
            raise StorageError(
                f"The server of {self.at.path} has {settings} off: a loss of power there may "
                "destroy everything that it answered. Nothing was stored. Switch it on in "
                "postgresql.conf; or add unsafe=yes to the URL if this is for a test only."
            )
        before, self.worth = self.worth, worth
        if before is not None and before != worth:
            text = f"The database answers again, by other settings: changes are now {worth}."
            self._on_event(Event(Noticed.BACK, text))

    @contextlib.contextmanager
    def within(self, timeout_s: float | None) -> Iterator[None]:
        """Inside, all calls of `until` together take no longer than this."""
        before = self._until
        limit_s = self.at.deadline_s if timeout_s is None else min(self.at.deadline_s, timeout_s)
        self._until = time.monotonic() + limit_s
        try:
            yield
        finally:
            self._until = before

    def until_s(self) -> float:
        """The time up to which a call that begins now may wait, by `time.monotonic`."""
        until = time.monotonic() + self.at.deadline_s
        return until if self._until is None else min(until, self._until)

    def rows(self, sql: str, *values: Value) -> Sequence[Sequence[Value]]:
        """The rows of one statement that may be run again. Raises as `until`."""
        return self.until(lambda session, until: session.run(sql, values, until=until))

    def until(self, attempt: Callable[[Session, float], T]) -> T:
        """Runs `attempt` with a connection, and again when its answer is lost.

        `attempt` must find out by itself what a previous attempt has done. It gets the time up to
        which it may wait.

        Raises:
            Unreachable: the deadline was reached. The effect of the last attempt is unknown.
            BackupError: an error of `attempt`, or a refusal of the server.
        """
        lost_at: float | None = None
        said_at, pause_s = 0.0, 0.0
        until = self.until_s()
        limit_s = max(0.0, until - time.monotonic())
        until = max(until, time.monotonic() + _LEAST_S)
        while True:
            try:
                result = attempt(self._connected(until - time.monotonic()), until)
            except (Lost, OSError) as error:
                self.close()
                now = time.monotonic()
                lost_at = now if lost_at is None else lost_at
                left_s = until - now
                if left_s <= 0:
                    raise Unreachable(self._explain(error, limit_s)) from error
                if (pause_s and said_at == 0.0) or now - max(said_at, lost_at) >= _SAY_EVERY_S:
                    said_at = now
                    text = (
                        f"No answer from the database of {self.at.path} ({error}). Retrying for "
                        f"{int(left_s)} more seconds."
                    )
                    self._on_event(Event(Noticed.WAITING, text))
                with interruption.at_once():
                    time.sleep(min(pause_s, left_s))
                pause_s = min(max(_FIRST_PAUSE_S, 2 * pause_s), _LONGEST_PAUSE_S)
            except BaseException:
                if self.session is not None and self.session.is_broken:
                    self.close()
                raise
            else:
                if said_at:
                    assert lost_at is not None
                    waited_s = time.monotonic() - lost_at
                    text = (
                        f"The database of {self.at.path} answers again, after {waited_s:.1f} "
                        "seconds."
                    )
                    self._on_event(Event(Noticed.BACK, text))
                return result

    def watch(self, session: Session, until: float) -> Callable[[], None]:
        """A function to call while a change waits for its answer.

        Asks over a second connection whether the server still works on the change, which nothing
        may cancel: it may wait for a standby. If it does not, because the connection was cut or
        another server has taken over, it raises `Lost`.
        """
        began = time.monotonic()
        probe_at, said_at = began + _PROBE_AFTER_S, 0.0

        def waiting() -> None:
            nonlocal probe_at, said_at
            now = time.monotonic()
            if now < probe_at:
                return
            probe_at = now + _PROBE_EVERY_S
            why = self._work_of(session)
            if said_at == 0.0 or now - said_at >= _SAY_EVERY_S:
                said_at = now
                text = (
                    f"The database of {self.at.path} has not answered for {now - began:.0f} "
                    f"seconds: {why}. Waiting for up to {max(0, int(until - now))} more seconds."
                )
                self._on_event(Event(Noticed.WAITING, text))

        return waiting

    def _work_of(self, session: Session) -> str:
        """Why a server has not answered. Raises `Lost` if it does not work on it any more."""
        try:
            probe = Session(self.at, _PROBE_S)
        except (Lost, BackupError) as error:
            return f"it does not accept another connection ({error})"
        try:
            limit = time.monotonic() + _PROBE_S
            rows = probe.run(_IS_AT_WORK, session.backend, until=limit)
        except (Lost, BackupError) as error:
            return str(error)
        finally:
            probe.close()
        if not rows:
            raise Lost("the server does not work on the change any more")
        if rows[0][0] == "SyncRep":
            return "it waits for a synchronous standby, which does not answer"
        return "it is still at work"

    def _explain(self, error: OSError, limit_s: float) -> str:
        advice = "The option deadline=SECONDS in the URL sets how long to wait."
        if limit_s < self.at.deadline_s - 1:
            advice = (
                "The URL's deadline applies only when the node is up: while it starts, its other "
                "plugins would time out, and commands do not wait longer either."
            )
        return (
            f"The database of {self.at.path} did not answer for {limit_s:.0f} seconds: {error}. "
            "Everything that was answered before is stored there. Check that the server, its "
            f"synchronous standbys and the network are up; then start again. {advice}"
        )

    def close(self) -> None:
        """Ends the connection; idempotent."""
        if self.session is not None:
            self.session.close()
            self.session = None
