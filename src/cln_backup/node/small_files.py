"""The small files of a node: which they are, and reading them beside the running node.

No link is followed, so that no file from elsewhere gets into a backup; a file that cannot be kept
is left out with a notice. A file that cannot be read by this user, or changes while it is read,
stays as it was kept before.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.model.node_files import (
    BASE,
    MAX_BYTES,
    MAX_FILES,
    NETWORK,
    TOR,
    NodeFile,
    NodeFiles,
    is_valid_name,
)
from cln_backup.node.settings import LOCK_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.model.node_files import Wanted

CONFIG: Final = "config"
EMERGENCY: Final = "emergency.recover"
HSM_SECRET: Final = "hsm_secret"  # noqa: S105 - the name of a file
_ACCOUNTS: Final = "accounts.sqlite3"
_PATTERNS: Final = (
    *(CONFIG, LOCK_NAME, EMERGENCY, _ACCOUNTS),
    *("ca*.pem", "server*.pem", "client*.pem"),
)
_TOR_PATTERNS: Final = ("hostname", "hs_ed25519_*", "*.auth")
_MAX_FILE_BYTES: Final = 2 << 20
_INCLUDE: Final = "include "
_MAX_INCLUDES: Final = 16
_UNREADABLE: Final = "this user may not read it"


class Candidate(NamedTuple):
    """A file that is to be kept.

    Attributes:
        name: in the set.
        path: where it is.
    """

    name: str
    path: str


class Collected(NamedTuple):
    """The files of a node as they were read.

    Attributes:
        notices: a line for each file that was left out, or stays as it was kept before.
    """

    files: NodeFiles
    notices: tuple[str, ...]


class _Unkept(Exception):
    """A file is not kept as it is now; the text says why.

    Attributes:
        stays: whether the earlier copy stays.
    """

    def __init__(self, why: str, *, stays: bool = False) -> None:
        super().__init__(why)
        self.stays = stays


def candidates(directory: str, wanted: Wanted) -> list[Candidate]:
    """The files to keep, by name, as far as this user can see them."""
    directory = os.path.realpath(directory)
    base = os.path.dirname(directory)
    found: dict[str, str] = {}
    patterns = (*_PATTERNS, HSM_SECRET) if wanted.hsm_secret else _PATTERNS
    for name in _names_in(directory, patterns):
        found[f"{NETWORK}/{name}"] = os.path.join(directory, name)
    for name in _names_in(base, (CONFIG,)):
        found[f"{BASE}/{name}"] = os.path.join(base, name)
    for path in [path for name, path in found.items() if name.endswith(f"/{CONFIG}")]:
        for included in _included(path):
            place = NETWORK if _is_in(included, directory) else BASE
            root = directory if place == NETWORK else base
            name = f"{place}/{os.path.relpath(included, root)}"
            if _is_in(included, root) and is_valid_name(name):
                found.setdefault(name, included)
    if wanted.tor_dir is not None:
        for name in _names_in(wanted.tor_dir, _TOR_PATTERNS):
            found[f"{TOR}/{name}"] = os.path.join(wanted.tor_dir, name)
    return [Candidate(name, found[name]) for name in sorted(found) if is_valid_name(name)]


def signature(found: list[Candidate]) -> dict[str, tuple[int, ...]]:
    """Differs for a file that has changed; opens none."""
    result: dict[str, tuple[int, ...]] = {}
    for candidate in found:
        try:
            status = os.lstat(candidate.path)
        except OSError:
            continue
        result[candidate.name] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return result


def collect(directory: str, wanted: Wanted, before: NodeFiles | None = None) -> Collected:
    """Reads the files; `before` is the set that was kept last."""
    found: list[NodeFile] = []
    notices: list[str] = []
    left_bytes = MAX_BYTES
    listed = candidates(directory, wanted)
    for candidate in listed:
        try:
            if len(found) >= MAX_FILES:
                raise _Unkept("there are too many files")
            file = _read(candidate, left_bytes)
        except _Unkept as unkept:
            earlier = None if before is None else before.named(candidate.name)
            stays = unkept.stays and earlier is not None and len(earlier.content) <= left_bytes
            what = "stays as it was kept before" if stays else "is not kept"
            notices.append(f"{candidate.path} {what}: {unkept}.")
            if not stays or earlier is None:
                continue
            file = earlier
        found.append(file)
        left_bytes -= len(file.content)
    if wanted.tor_dir is not None and not any(name.startswith(TOR) for name, _ in listed):
        earlier_files = [] if before is None else [one for one in before.files if one.place == TOR]
        what = "stay as they were kept before" if earlier_files else "are not kept"
        notices.append(f"The files in {wanted.tor_dir} {what}: {_why_not(wanted.tor_dir)}.")
        found += earlier_files
    found.sort()
    return Collected(NodeFiles(time.time_ns() // 1_000_000, tuple(found)), tuple(notices))


def _names_in(directory: str, patterns: tuple[str, ...]) -> list[str]:
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return [name for name in names if any(fnmatch.fnmatchcase(name, one) for one in patterns)]


def _why_not(directory: str) -> str:
    try:
        names = os.listdir(directory)
    except OSError as error:
        return _UNREADABLE if error.errno == errno.EACCES else error.strerror or str(error)
    return "it has no hostname and no key" if names else "it is empty"


def _is_in(path: str, directory: str) -> bool:
    return os.path.realpath(path).startswith(directory.rstrip("/") + "/")


def _included(path: str) -> Iterator[str]:
    """The files that a configuration file includes, also indirectly (common/configdir.c)."""
    waiting, seen = [path], {path}
    while waiting and len(seen) <= _MAX_INCLUDES:
        current = waiting.pop()
        try:
            text = _read(Candidate(f"{NETWORK}/{CONFIG}", current), _MAX_FILE_BYTES).content
        except _Unkept:
            continue
        for line in text.decode("utf-8", "surrogateescape").splitlines():
            if not line.startswith(_INCLUDE):
                continue
            target = os.path.join(os.path.dirname(current), line[len(_INCLUDE) :])
            target = os.path.normpath(target)
            if target not in seen:
                seen.add(target)
                waiting.append(target)
                yield target


def _read(candidate: Candidate, left_bytes: int) -> NodeFile:
    """Reads a file as a whole, as it was at one moment. Raises `_Unkept`."""
    path = candidate.path
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _Unkept("it is a symbolic link") from None
        if error.errno == errno.ENXIO:  # a socket
            raise _Unkept("it is not a regular file") from None
        denied = error.errno == errno.EACCES
        why = _UNREADABLE if denied else error.strerror or str(error)
        raise _Unkept(why, stays=error.errno != errno.ENOENT) from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _Unkept("it is not a regular file")
        limit_bytes = min(_MAX_FILE_BYTES, left_bytes)
        if status.st_size > limit_bytes:
            raise _Unkept(
                f"it has {status.st_size} bytes; the limit is {_MAX_FILE_BYTES} for a file, and "
                f"{MAX_BYTES} for all of them"
            )
        content = b""
        while len(content) <= limit_bytes and (piece := os.read(fd, limit_bytes + 1)):
            content += piece
        after = os.fstat(fd)
    except OSError as error:
        raise _Unkept(error.strerror or str(error), stays=True) from None
    finally:
        os.close(fd)
    same = (status.st_size, status.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    if not same or len(content) != status.st_size or _is_in_transaction(candidate):
        raise _Unkept("it was being written", stays=True)
    mtime_ms = max(0, status.st_mtime_ns // 1_000_000)
    return NodeFile(candidate.name, stat.S_IMODE(status.st_mode) & 0o777, mtime_ms, content)


def _is_in_transaction(candidate: Candidate) -> bool:
    """Whether a database may have a part of its content elsewhere."""
    if not candidate.path.endswith(_ACCOUNTS):
        return False
    companions = (f"{candidate.path}-journal", f"{candidate.path}-wal")
    return any(os.path.exists(path) and os.path.getsize(path) > 0 for path in companions)
