"""Facts about a node and its machine from outside its database."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import stat
import struct
import sys
from typing import Final, NamedTuple

from cln_backup.backends import redacted
from cln_backup.model.continuity import Storage
from cln_backup.model.errors import BadSettings, NodeRunning, NotFound, StorageError
from cln_backup.storage import directories, fsio
from cln_backup.storage.mount_identity import mount_identity

RPC_SOCKET_NAME = "lightning-rpc"
DATABASE_NAME = "lightningd.sqlite3"
_IN_NETWORK_DIRECTORY = frozenset(
    (
        DATABASE_NAME,
        "hsm_secret",
        RPC_SOCKET_NAME,
        "gossip_store",
        "emergency.recover",
        "backup.lock",
    )
)
_NETWORKS = frozenset(
    ("bitcoin", "testnet", "testnet4", "signet", "regtest", "liquid", "liquid-regtest")
)
_SQLITE = b"SQLite format 3\x00"
_MAX_CONFIGURATION_BYTES = 1 << 16
_FIND = "read the node's database"


def boot_id() -> str | None:
    """The id of this boot of the machine; `None` if the system has none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:  # not Linux, or a /proc with processes only
        import subprocess

        try:
            asked = subprocess.run(
                ["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return asked.stdout.strip() or None


def storage_of(database: str) -> Storage:
    """The current storage of the node's database."""
    # SQLite puts its journal beside the file itself, not beside a link to it.
    return Storage(boot_id(), mount_identity(os.path.dirname(os.path.realpath(database))))


class _Process(NamedTuple):
    command: str
    state: str
    parent: int


def _process(pid: int) -> _Process:
    """Linux's data about a process. Raises `OSError` if it has ended, or this is not Linux."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        command, _, rest = file.read().partition("(")[2].rpartition(")")
    state, parent = rest.split()[:2]
    return _Process(command, state, int(parent))


def lightningd_above(pid: int | None = None) -> int:
    """The process id of the lightningd that started a process, perhaps through a wrapper.

    Args:
        pid: the process; `None` for this one.

    Raises:
        OSError: the process does not exist, or the system does not tell.
    """
    parent = above = os.getppid() if pid is None else _process(pid).parent
    while above > 1:
        try:
            process = _process(above)
        except OSError:  # not Linux
            break
        if process.command == "lightningd":
            return above
        above = process.parent
    return parent


def other_plugins_live(lightningd: int, besides: int) -> bool:
    """Whether lightningd (its process id) still has plugins other than the given process.

    Its own daemons do not count; they end after the plugins. A plugin that has ended stays as a
    zombie, since lightningd no longer waits for its children when it shuts down. `True` if the
    system does not tell.
    """
    if not os.path.isdir("/proc/self"):
        return True
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == besides:
            continue
        try:
            process = _process(int(name))
        except OSError:  # it ended meanwhile
            continue
        if (
            process.parent == lightningd
            and process.state != "Z"
            and not process.command.startswith("lightning_")
        ):
            return True
    return False


def database_path(directory: str, wallet: str | None) -> str:
    """Where the node's database is, or will be: `wallet` if given, else `lightningd.sqlite3`.

    `wallet` may be written as for lightningd: `sqlite3://PATH`, with `:REPLICA` after it.

    Raises:
        BadSettings: `wallet` names a database that is not SQLite.
    """
    if wallet is None:
        return os.path.join(directory, DATABASE_NAME)
    scheme, slashes, rest = wallet.partition("://")
    if slashes and scheme == "sqlite3":
        wallet = rest.partition(":")[0]
    elif slashes:
        raise BadSettings(
            f"The wallet {redacted(wallet)} is not a SQLite database. This program can back up "
            "SQLite only, because lightningd reports the changes of no other database."
        )
    return os.path.join(directory, wallet)


def network_directories_in(directory: str) -> list[str]:
    """Names of a node's network directories in a directory that is not one itself."""
    names = directories.names(directory, op=_FIND)
    if not _IN_NETWORK_DIRECTORY.isdisjoint(names):
        return []
    return [name for name in names if _is_network_directory(os.path.join(directory, name))]


def has_network_name(directory: str) -> bool:
    """Whether a directory has the name of a network, as every network directory has."""
    return os.path.basename(os.path.abspath(directory)) in _NETWORKS


def _is_network_directory(path: str) -> bool:
    with contextlib.suppress(OSError):
        known = os.path.basename(path) in _NETWORKS
        return os.path.isdir(path) and (
            known or not _IN_NETWORK_DIRECTORY.isdisjoint(os.listdir(path))
        )
    return False


def database_in_use(lightningd: int, path: str) -> str:
    """The path of the database that a lightningd has open; `path` if it is that or is unknown.

    For use while lightningd waits in `db_write`: a SQLite database is open then.
    """
    expected = None
    with contextlib.suppress(OSError):
        expected = os.stat(path)
    others = []
    for link in sorted(
        glob.glob(f"/proc/{lightningd}/fd/*"), key=lambda link: int(link[link.rfind("/") + 1 :])
    ):
        with contextlib.suppress(OSError, StorageError):
            found = os.stat(link)
            if expected is not None and os.path.samestat(found, expected):
                return path
            if stat.S_ISREG(found.st_mode) and _is_sqlite(link):
                others.append(os.readlink(link))
    return others[0] if others else path


def _is_sqlite(path: str) -> bool:
    fd = fsio.open_existing(path, writable=False, op=_FIND)
    try:
        return fsio.read_at(fd, len(_SQLITE), 0, op=_FIND) == _SQLITE
    finally:
        os.close(fd)


def option_in_configuration(directory: str, option: str) -> tuple[str, str] | None:
    """An option in lightningd's configuration files: the file, and the value.

    Only the usual files are read; `None` if none of them sets it, or none can be read.
    """
    return next(iter(options_in_configuration(directory, option)), None)


def options_in_configuration(directory: str, option: str) -> list[tuple[str, str]]:
    """All lines of lightningd's configuration files that set an option: the file, and the value."""
    found = []
    absolute = os.path.abspath(directory)
    for place in (absolute, os.path.dirname(absolute)):
        path = os.path.join(place, "config")
        with contextlib.suppress(StorageError):
            fd = fsio.open_existing(path, writable=False, op=_FIND)
            try:
                text = fsio.read_at(fd, _MAX_CONFIGURATION_BYTES, 0, op=_FIND)
            finally:
                os.close(fd)
            for line in text.decode("utf-8", "surrogateescape").splitlines():
                name, equals, value = line.strip().partition("=")
                if name.strip() == option and equals:
                    found.append((path, value.strip()))
    return found


def _require_same_wallet(directory: str, path: str) -> None:
    found = option_in_configuration(directory, "wallet")
    if found is None:
        return
    file, value = found
    configured = database_path(directory, value)
    if os.path.realpath(configured) != os.path.realpath(path):
        raise BadSettings(
            f"The node's database is {configured}, not {path}: {file} says "
            f"wallet={redacted(value)}. Name it with --wallet {value} when the backup is made, or "
            f'later in backup.lock: "wallet": "{value}". If that line is no longer used, remove it.'
        )


def find_database(directory: str, wallet: str | None) -> str | None:
    """The path of the node's database, `None` if it has none yet.

    An empty file counts as none, as it does for SQLite.

    Raises:
        NotFound: the directory does not exist, or is the one above the network directory.
        BadSettings: `wallet` names a database that is not SQLite, or is not given although the
            configuration names a different one.
        StorageError: this user cannot read the database or its directory.
    """
    path = database_path(directory, wallet)
    if wallet is None:
        _require_same_wallet(directory, path)
    for place in (directory, os.path.dirname(path)):
        kind = fsio.kind_at(place, op=_FIND)
        if kind != "directory":
            what = "is not a directory" if kind else "does not exist"
            raise NotFound(f"The directory {place} {what}.")
    kind = fsio.kind_at(path, op=_FIND)
    if kind is None:
        if wallet is not None:
            return None
        below = network_directories_in(directory)
        if below:
            raise NotFound(
                f"{directory} is not a network directory: it has no database, but contains "
                f"{os.path.join(directory, below[0])}. Use that one: lightningd starts the plugin "
                "there, and the plugin looks for backup.lock there."
            )
        return None
    if kind == "link":
        raise NotFound(f"{path} is a dangling link.")
    fd = fsio.open_existing(path, writable=False, op=_FIND)
    try:
        return path if fsio.size_bytes(fd) > 0 else None
    finally:
        os.close(fd)


def require_stopped(directory: str, database: str | None) -> None:
    """Makes sure, as far as possible, that no lightningd is running on a network directory.

    A running one answers on its RPC socket, and holds a lock on its pid file, which is in the
    directory above (lightningd/lightningd.c, `pidfile_create`) unless the node's unit says
    otherwise. It also has its database open.

    Raises:
        NodeRunning: one is running.
    """
    directory = os.path.realpath(directory)
    advice = "Stop the node first (lightning-cli stop); nothing was touched."
    rpc = os.path.join(directory, RPC_SOCKET_NAME)
    if _answers(rpc):
        raise NodeRunning(f"lightningd is running on {directory}: it answers on {rpc}. {advice}")
    user = None if database is None else process_with_open(os.path.realpath(database))
    if user is not None:
        raise NodeRunning(f"Process {user} has {database} open. {advice}")
    above, network = os.path.split(directory)
    for place in (above, directory):
        path = os.path.join(place, f"lightningd-{network}.pid")
        holder = _lock_holder(path)
        if holder is not None:
            raise NodeRunning(
                f"lightningd is running on {directory}: process {holder} has locked {path}. "
                f"{advice}"
            )


def process_with_open(path: str) -> int | None:
    """A process that has a file open, as far as this user may see."""
    for link in glob.iglob("/proc/[0-9]*/fd/*"):
        try:
            if os.readlink(link) == path:
                return int(link.split("/")[2])
        except OSError:  # it ended meanwhile, or belongs to another user
            continue
    return None


_LONGEST_SOCKET_PATH: Final = 107
"""In bytes. lightningd binds its socket by a relative path, so the absolute one may be longer."""


def _answers(path: str) -> bool:
    import socket

    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(5)
    directory = None
    try:
        if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
            directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            path = f"/proc/self/fd/{directory}/{os.path.basename(path)}"
        probe.connect(path)
    except (ConnectionError, FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # busy, or not permitted: a process is there
        return os.path.exists(path)
    else:
        return True
    finally:
        probe.close()
        if directory is not None:
            os.close(directory)


def _lock_holder(path: str) -> int | None:
    """The process that holds a lock on the whole file, without touching the lock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # do not block on a FIFO
    except OSError:
        return None
    try:
        # struct flock; the BSDs have the offsets first
        form = "hhqqi4x" if sys.platform.startswith("linux") else "qqihh"
        fields = (fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        if form[0] == "q":
            fields = (0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET)
        found = struct.unpack(form, fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack(form, *fields)))
        kind, pid = (found[0], found[4]) if form[0] == "h" else (found[3], found[2])
        return None if kind == fcntl.F_UNLCK else pid
    finally:
        os.close(fd)
