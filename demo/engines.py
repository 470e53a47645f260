"""The engines that a demo's backup may be in: started for it, disturbed once, and ended."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends.socket.token_file import create_token
from tests import postgres_cluster
from tests.objects import engine as object_store
from tests.postgres.appending import confirm_by, wait_for
from tests.socket.serving import server_process

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


class Engine(NamedTuple):
    """Where the backup of a demo is.

    Attributes:
        url: of the backup.
        secret: the options that make an encrypted backup and unlock it; none without encryption.
        at_start: what was started, in a sentence.
        trouble: what happens to the engine while the node runs, in a sentence.
        make_trouble: makes it happen.
    """

    url: str
    secret: tuple[str, ...] = ()
    at_start: str = ""
    trouble: str = ""
    make_trouble: Callable[[], None] | None = None


@contextlib.contextmanager
def directory(work: Path) -> Iterator[Engine]:
    """A directory, as on another disk."""
    backup = work / "another-disk" / "node"
    backup.parent.mkdir()
    yield Engine(str(backup))


def _hsm_secret(work: Path) -> tuple[str, ...]:
    """An encrypted backup is unlocked by the copy of the node's hsm_secret."""
    copy = work / "copied-once" / "hsm_secret"
    copy.parent.mkdir()
    copy.write_bytes(bytes(range(32)))
    return "--hsm-secret", str(copy)


@contextlib.contextmanager
def postgres(work: Path) -> Iterator[Engine]:
    """A PostgreSQL server and its synchronous standby; on the way, the standby takes over."""
    with postgres_cluster.private(on_disk=True) as primary:
        standby = postgres_cluster.Server(postgres_cluster.new_directory(on_disk=True))

        def fail_over() -> None:
            primary.kill()
            standby.sql("SELECT pg_promote(wait => false)")
            wait_for(lambda: standby.sql("SELECT pg_is_in_recovery()") == [(False,)])

        try:
            standby.copy_from(primary, "s1")
            standby.start()
            confirm_by(primary, "s1")
            yield Engine(
                postgres_cluster.url_of((primary, standby), "demo"),
                _hsm_secret(work),
                "A PostgreSQL server runs, and a synchronous standby that confirms each commit",
                "The PostgreSQL server is killed; its standby is promoted, and the node goes on",
                fail_over,
            )
        finally:
            standby.kill()
            shutil.rmtree(standby.directory, ignore_errors=True)


@contextlib.contextmanager
def running_store() -> Iterator[tuple[object_store.Engine, Callable[[], None]]]:
    """An object store that syncs what it answers, and a function that kills and restarts it."""
    with tempfile.TemporaryDirectory(prefix="cln-backup-store-") as place:
        directory = Path(place)
        ports = object_store.free_ports(4)
        running: list[subprocess.Popen[bytes]] = []

        def start() -> None:
            with (directory / "log").open("ab") as log:
                running.append(object_store.start(directory, ports, log=log))
            object_store.wait_until_ready(directory, ports[0], running[-1])

        def stop() -> None:
            process = running.pop()
            process.kill()
            process.wait()

        def restart() -> None:
            stop()
            start()

        start()
        try:
            object_store.shell(ports, "fs.configure -locationPrefix=/buckets/ -fsync -apply")
            yield object_store.Engine(ports[0], directory / "credentials"), restart
        finally:
            stop()


@contextlib.contextmanager
def s3(work: Path) -> Iterator[Engine]:
    """An object store, which is killed on the way."""
    with running_store() as (store, restart):
        yield Engine(
            store.url("demo"),
            _hsm_secret(work),
            "An object store runs (SeaweedFS), and syncs each object",
            "The object store is killed and started again; meanwhile the node waits",
            restart,
        )


@contextlib.contextmanager
def sealed(work: Path) -> Iterator[Engine]:
    """A server that cannot read the backup, and is killed on the way."""
    token, nodes = work / "backup.token", work / "nodes"
    disk = work / "friends-disk"
    disk.mkdir()
    shown = create_token(str(token))
    nodes.write_text(f"demo objects://{disk}/demo {shown} quota=1G retain=30\n")
    with server_process("--nodes", str(nodes)) as server:

        def restart() -> None:
            server.kill()
            server.start()

        yield Engine(
            f"{server.url}?node=demo&token-file={token}",
            _hsm_secret(work),
            "A friend's server runs: it stores the backup, and has no key to read it",
            "The server is killed and started again; meanwhile the node waits",
            restart,
        )


ENGINES: dict[str, Callable[[Path], AbstractContextManager[Engine]]] = {
    "dir": directory,
    "postgres": postgres,
    "s3": s3,
    "sealed": sealed,
}
"""By the name that `make demo ENGINE=NAME` takes."""
