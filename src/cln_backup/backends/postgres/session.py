"""One connection to a server: statements, and the reasons why an answer may count for nothing.

It is used below psycopg's own connections, which cancel a statement when they are interrupted. A
statement that waits for a standby must never be cancelled: it would be committed on this server
alone, with nothing but a warning.
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Final, NoReturn

from cln_backup.backends.postgres.values import packed, rows_of
from cln_backup.backends.postgres.worth import FACTS, worth_of
from cln_backup.model.errors import (
    AccessDenied,
    BadUrl,
    BrokenInstallation,
    NotFound,
    StorageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from psycopg.pq.abc import PGconn, PGresult

    from cln_backup.backends.postgres.url import PostgresUrl
    from cln_backup.backends.postgres.values import Value

_CONNECT_S: Final = 10
_LEAST_CONNECT_S: Final = 2  # libpq takes no less
_TICK_S: Final = 1.0
_OLDEST_SERVER: Final = 130_000

_LIVENESS: Final = {
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""So that a connection to a machine that is gone does not count as one that waits."""

_SETTINGS: Final = """
SELECT set_config(name, value, false) FROM (VALUES
    ('client_min_messages', 'warning'), ('statement_timeout', '0'), ('lock_timeout', '0'),
    ('transaction_timeout', '0'), ('idle_session_timeout', '0'),
    ('idle_in_transaction_session_timeout', '0'), ('default_transaction_isolation',
    'read committed'), ('default_transaction_deferrable', 'off'), ('plan_cache_mode',
    'force_generic_plan'), ('tcp_keepalives_idle', '10'), ('tcp_keepalives_interval', '5'),
    ('tcp_keepalives_count', '3'), ('synchronous_commit',
    CASE WHEN current_setting('synchronous_commit') = 'remote_apply' THEN 'remote_apply'
    ELSE 'on' END)) AS wanted (name, value) WHERE name IN (SELECT name FROM pg_settings)
"""


class Lost(OSError):
    """The answer is unknown: the connection was lost, or there was a warning. Settle it."""


class Session:
    """One connection.

    Attributes:
        worth: what an answer is worth here.
        backend: the process id of the server's process, and when it was started.
    """

    def __init__(self, at: PostgresUrl, timeout_s: float) -> None:
        """Connects.

        Raises:
            Lost: a retry may succeed.
            BackupError: the server refused.
        """
        psycopg = import_psycopg()
        limit_s = max(_LEAST_CONNECT_S, min(_CONNECT_S, int(timeout_s)))
        try:
            # Held for its pgconn: nothing else of it is used.
            self._held = psycopg.connect(
                **{"application_name": "cln-backup", **_LIVENESS, **at.libpq},
                connect_timeout=limit_s,
                autocommit=True,
            )
        except psycopg.Error as error:
            _refuse_connection(at, error)
        self._connection: PGconn = self._held.pgconn
        self._notices: list[tuple[str, str]] = []
        self._at = at
        self._broken = False
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        self._require_private()
        self._connection.notice_handler = self._noticed
        self._connection.nonblocking = 1
        until = time.monotonic() + _CONNECT_S
        self.run(_SETTINGS, until=until)
        self._notices.clear()
        version, pid, started, *settings = self.run(FACTS, until=until)[0]
        assert isinstance(version, int)
        if version < _OLDEST_SERVER:
            raise BadUrl(
                f"The server is PostgreSQL {version // 10_000}; cln-backup needs 13 or later."
            )
        self.worth = worth_of(settings)
        self.backend = (pid, started)

    def _require_private(self) -> None:
        """Refuses a connection that others on the network could read or pretend to be."""
        info = self._held.info
        local = info.host.startswith(("/", "@")) or info.hostaddr in ("127.0.0.1", "::1", "")
        verified = info.get_parameters().get("sslmode", "").startswith("verify-")
        if not (local or self._at.insecure or (verified and self._connection.ssl_in_use)):
            raise BadUrl(
                f"The connection to {info.host} would go over the network without a verified "
                "certificate, so that others could read the backup or answer in its place. Add "
                "sslmode=verify-full (and sslrootcert=PATH, or sslrootcert=system) to the URL; or "
                "insecure=yes if a tunnel of your own (WireGuard, SSH) encrypts the connection."
            )

    def _noticed(self, result: PGresult) -> None:
        from psycopg.pq import DiagnosticField

        severity = result.error_field(DiagnosticField.SEVERITY_NONLOCALIZED) or b""
        message = result.error_field(DiagnosticField.MESSAGE_PRIMARY) or b""
        self._notices.append(
            (severity.decode("ascii", "replace"), message.decode("utf-8", "replace"))
        )

    def prepare(self, name: str, sql: str, types: Sequence[int]) -> None:
        """Prepares a statement for `run_prepared`."""
        self._connection.send_prepare(name.encode(), sql.encode(), list(types))
        self._result(time.monotonic() + _CONNECT_S, None)

    def run_prepared(
        self,
        name: str,
        values: Sequence[Value],
        *,
        until: float,
        waiting: Callable[[], None] | None = None,
    ) -> list[list[Value]]:
        """As `run`, for a statement that was prepared."""
        sent = [packed(value) for value in values]
        self._send(
            lambda: self._connection.send_query_prepared(
                name.encode(), [one[0] for one in sent], [one[2] for one in sent], 1
            )
        )
        return self._answer(until, waiting)

    def run(
        self,
        sql: str,
        values: Sequence[Value] = (),
        *,
        until: float,
        waiting: Callable[[], None] | None = None,
    ) -> list[list[Value]]:
        """Runs one statement, in one round trip; returns its rows.

        Any notice of the server makes the answer unknown: a warning may say that a change was
        committed here alone.

        Args:
            sql: with `$1` and so on for the values.
            values: of the parameters.
            until: the time to stop waiting, by `time.monotonic`; the statement is not cancelled.
            waiting: called about every second while the server has not answered; an error of it
                ends the wait.

        Raises:
            Lost: it is unknown whether the statement has run.
            BackupError: it has not.
        """
        sent = [packed(value) for value in values]
        self._send(
            lambda: self._connection.send_query_params(
                sql.encode(),
                [one[0] for one in sent],
                [one[1] for one in sent],
                [one[2] for one in sent],
                1,
            )
        )
        return self._answer(until, waiting)

    def run_block(self, sql: str, *, until: float) -> None:
        """Runs statements without parameters as one transaction. Raises as `run`."""
        self._send(lambda: self._connection.send_query(sql.encode()))
        try:
            self._answer(until, None)
        except BaseException:
            self._broken = True  # the transaction is not ended
            raise

    def _send(self, send: Callable[[], None]) -> None:
        from psycopg import OperationalError

        if self._broken:
            raise Lost("the connection was given up")
        self._notices.clear()
        self._broken = True  # until there is an answer
        try:
            send()
        except OperationalError as error:
            raise Lost(_first_line(error)) from None

    def _answer(self, until: float, waiting: Callable[[], None] | None) -> list[list[Value]]:
        rows = self._result(until, waiting)
        self._broken = False
        if self._notices:
            self._broken = True
            severity, message = self._notices[0]
            raise Lost(f"the server answered with {severity.lower() or 'a notice'}: {message}")
        return rows

    def _result(self, until: float, waiting: Callable[[], None] | None) -> list[list[Value]]:
        from psycopg import OperationalError
        from psycopg.pq import ExecStatus

        try:
            self._wait(until, waiting)
            rows: list[list[Value]] = []
            failed: PGresult | None = None
            while (result := self._connection.get_result()) is not None:
                if result.status == ExecStatus.TUPLES_OK:
                    rows = rows_of(result)
                elif result.status != ExecStatus.COMMAND_OK:
                    failed = failed or result
                self._wait(until, waiting)
        except OperationalError as error:
            raise Lost(_first_line(error)) from None
        if failed is not None:
            self._refuse(failed)
        return rows

    def _wait(self, until: float, waiting: Callable[[], None] | None) -> None:
        connection = self._connection
        ticks_at = time.monotonic() + _TICK_S
        unsent = connection.flush()
        while unsent or connection.is_busy():
            now = time.monotonic()
            if now >= ticks_at:
                ticks_at = now + _TICK_S
                if waiting is not None:
                    waiting()
            fd = connection.socket
            wait_s = max(0.0, min(until, ticks_at) - now)
            readable, writable, _ = select.select([fd], [fd] if unsent else [], [], wait_s)
            if not readable and not writable and now >= until:
                # Not before a look: a process of the lowest priority may have been asleep itself.
                raise Lost("no answer")
            if readable:
                connection.consume_input()
            if unsent and (readable or writable):
                unsent = connection.flush()

    def _refuse(self, result: PGresult) -> NoReturn:
        from psycopg.pq import DiagnosticField

        state = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode("ascii", "replace")
        message = (result.error_field(DiagnosticField.MESSAGE_PRIMARY) or b"").decode(
            "utf-8", "replace"
        )
        if state in ("42P01", "3F000", "3D000"):
            self._broken = False
            raise NotFound(
                f"There is no backup {self._at.path}: its tables do not exist. `backup-cli init` "
                "makes them. If there was a backup, check the name of the database."
            )
        if state == "42501":
            self._broken = False
            raise AccessDenied(
                f"PostgreSQL refused: {message}. Nothing was changed. `backup-cli init` prints the "
                "rights that a node's role needs, as SQL."
            )
        if state == "23505":
            self._broken = False
            raise Taken(message)
        if state[:2] in ("53", "54", "58", "XX") and state != "53300":
            raise StorageError(
                f"PostgreSQL could not store the change: {message} ({state}). Everything that was "
                "answered before is stored. Repair the server, and start the node again."
            )
        raise Lost(f"{message} ({state})")

    def close(self) -> None:
        """Ends the connection; idempotent. The server is not told to cancel anything."""
        self._broken = True
        self._connection.finish()
        self._held.close()

    @property
    def is_broken(self) -> bool:
        """Whether it cannot be used any more."""
        return self._broken


class Taken(Exception):
    """A row that must be the only one of its name exists."""


def import_psycopg() -> ModuleType:
    """The library, which is imported only when it is used. Raises `BrokenInstallation`."""
    try:
        import psycopg
    except ImportError as error:
        raise BrokenInstallation(
            f"PostgreSQL needs the Python package psycopg, which cannot be loaded ({error}). "
            "Install it where cln-backup is installed: pip install 'cln-backup[postgres]'"
        ) from None
    return psycopg


_PERMANENT: Final = ("28", "3D", "0A", "42")
"""Classes of errors that no retry repairs: wrong password or role, no such database."""


_UNTRUSTED: Final = (
    "certificate verify failed",
    "does not match host name",
    "root certificate file",
)
"""In libpq's messages about a server that `sslmode=verify-full` does not accept."""


def _refuse_connection(at: PostgresUrl, error: Exception) -> NoReturn:
    state = getattr(error, "sqlstate", None) or ""
    text = _first_line(error)
    if "password authentication failed" in str(error) or "no pg_hba.conf entry" in str(error):
        raise AccessDenied(
            f"PostgreSQL refused the connection to {at.path}: {text}. Nothing was stored. Check "
            "the role, its password in ~/.pgpass (mode 0600), and pg_hba.conf on the server."
        ) from None
    alone = "," not in at.libpq.get("host", "")  # of several, another one may come back
    if alone and any(sign in str(error) for sign in _UNTRUSTED):
        raise AccessDenied(
            f"Certificate mismatch: the server of {at.path} is a different one, or a "
            f"man-in-the-middle attack ({text}). Nothing was stored. If its certificate was "
            "changed, correct sslrootcert=PATH in the URL."
        ) from None
    if "no password supplied" in str(error):
        raise AccessDenied(
            f"PostgreSQL wants a password for {at.path}, and there is none. Put it into ~/.pgpass "
            "(mode 0600) of the user that runs the node, or name a file with passfile=PATH."
        ) from None
    if state[:2] in _PERMANENT or ('database "' in text and "does not exist" in text):
        raise NotFound(f"PostgreSQL refused the connection to {at.path}: {text}") from None
    raise Lost(text) from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
