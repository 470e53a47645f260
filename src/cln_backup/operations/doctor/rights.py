"""Owners and rights of the files that the node needs."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.model.health import Finding, Level
from cln_backup.storage.ownership import name_of_user

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


_SHOWN: Final = 3
_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_MAY_READ: Final = stat.S_IRGRP | stat.S_IROTH


class File(NamedTuple):
    """A file of a node or of its backup.

    Attributes:
        uid: its owner.
        mode: its permissions.
        is_secret: whether others must not read it.
    """

    path: str
    uid: int
    mode: int
    is_secret: bool


class Rights(NamedTuple):
    """The files, and the user that the node's directory belongs to."""

    node_uid: int
    files: tuple[File, ...]


def gather(directory: str, storage_dir: str | None, name: str) -> Rights:
    """Looks at the files; `name` is that of a `file:` backup, empty for a directory.

    Raises:
        OSError: this user may not.
    """
    paths = [(os.path.join(directory, each), False) for each in ("backup.lock", "backup.state")]
    if storage_dir is not None and not name:
        paths += [(storage_dir, True)]
        paths += [(os.path.join(storage_dir, each), False) for each in os.listdir(storage_dir)]
    elif storage_dir is not None:
        beside = (each for each in os.listdir(storage_dir) if each.startswith(f"{name}."))
        paths += [(os.path.join(storage_dir, each), True) for each in (name, *beside)]
    return Rights(os.stat(directory).st_uid, tuple(_found(paths)))


def _found(paths: Iterable[tuple[str, bool]]) -> Iterator[File]:
    for path, is_secret in paths:
        try:
            found = os.stat(path)
        except FileNotFoundError:  # never made, or removed meanwhile
            continue
        yield File(path, found.st_uid, stat.S_IMODE(found.st_mode), is_secret)


def judge(rights: Rights) -> Iterator[Finding]:
    """The findings about owners and rights."""
    foreign = [file for file in rights.files if file.uid != rights.node_uid]
    if foreign and rights.node_uid != 0:
        user = name_of_user(rights.node_uid)
        yield Finding(
            "wrong-owner",
            Level.BAD,
            f"{_listed(foreign)} {_belong(foreign)} to {name_of_user(foreign[0].uid)}, and the "
            f"node's directory to {user}: the node may not be able to use them.",
            f"chown {user} {foreign[0].path}" + (" (and the others)" if len(foreign) > 1 else ""),
        )
    writable = [file for file in rights.files if file.mode & _MAY_WRITE]
    readable = [file for file in rights.files if file.is_secret and file.mode & _MAY_READ]
    if writable:
        yield Finding(
            "others-may-write",
            Level.WARNING,
            f"Other users may write to {_listed(writable)}.",
            f"chmod go-w {writable[0].path}",
        )
    if readable:
        yield Finding(
            "others-may-read",
            Level.WARNING,
            f"Other users may read {_listed(readable)}: it has all that the node's database has.",
            f"chmod go-rwx {readable[0].path}",
        )
    if not (foreign and rights.node_uid != 0) and not writable and not readable:
        yield Finding(
            "wrong-owner", Level.GOOD, "The files belong to the node's user, and to no other."
        )


def _belong(files: list[File]) -> str:
    return "belongs" if len(files) == 1 else "belong"


def _listed(files: list[File]) -> str:
    shown = ", ".join(file.path for file in files[:_SHOWN])
    return shown if len(files) <= _SHOWN else f"{shown} and {len(files) - _SHOWN} more"
