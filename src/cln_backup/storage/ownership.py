"""The owner of the files that this program makes: if root runs it, the node must read them too.

Files made by root are given to the owner of the file that they replace, otherwise to the owner of
their directory. They are private when they change owner, which is done by descriptor: a name could
lead to another file by then.
"""

from __future__ import annotations

import contextlib
import os
import stat
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_node: ContextVar[os.stat_result | None] = ContextVar("node", default=None)
_said: set[str] = set()


@contextlib.contextmanager
def of_node(directory: str) -> Iterator[None]:
    """Inside, files that root makes in root's directories go to the owner of this directory."""
    found = None
    with contextlib.suppress(OSError):
        found = os.stat(directory)
    token = _node.set(found)
    try:
        yield
    finally:
        _node.reset(token)


def give(fd: int, path: str, like: str | None = None) -> None:
    """Gives a file or directory, just made at `path`, to the owner of `like` or of its directory.

    Only root can. If it fails and another user needs to read the file, a line is logged.
    """
    root = os.geteuid() == 0
    if not root and like is None:
        return
    made = os.fstat(fd)
    wanted = None if like is None else _look_at(like)
    if wanted is None:
        wanted = _directory_of(made, path) if root else None
    if wanted is None or wanted.st_uid == made.st_uid:
        return
    why = "only root can do that"
    if root:
        try:
            os.fchown(fd, wanted.st_uid, wanted.st_gid)
        except OSError as error:
            why = error.strerror or str(error)
        else:
            return
    _say(os.path.dirname(os.path.abspath(path)), name_of_user(wanted.st_uid), why)


def may_write(directory: str, node_directory: str) -> str | None:
    """Why the owner of a node's directory cannot make files in another; `None` if it can.

    Looks at the owner, the group and the mode only. For root, who could write anywhere itself.
    """
    node, found = os.stat(node_directory), os.stat(directory)
    if os.geteuid() != 0 or node.st_uid in (0, found.st_uid) or found.st_mode & stat.S_IWOTH:
        return None
    if found.st_mode & stat.S_IWGRP and node.st_gid == found.st_gid:
        return None
    user = name_of_user(node.st_uid)
    return (
        f"The node cannot create files in {directory}, as it must after a crash: the directory "
        f"belongs to {name_of_user(found.st_uid)}, and the node's directory to {user}. Run: "
        f"chown {user} {directory}"
    )


def name_of_user(uid: int) -> str:
    """A user's name; the number if it has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _look_at(path: str) -> os.stat_result | None:
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
            return found
    return None


def _directory_of(made: os.stat_result, path: str) -> os.stat_result | None:
    """The directory of a file that was made; `None` if a name was changed meanwhile."""
    directory, name = os.path.split(os.path.abspath(path))
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if not os.path.samestat(made, os.stat(name, dir_fd=fd, follow_symlinks=False)):
            return None
    except OSError:
        return None
    finally:
        os.close(fd)
    node = _node.get()
    return node if found.st_uid == 0 and node is not None else found


def _say(directory: str, user: str, why: str) -> None:
    if directory in _said:
        return
    _said.add(directory)
    warn(
        f"Cannot change the owner of the new files in {directory} to {user}: {why}. Only the user "
        f"that runs this program can read them. If the node runs as a different user, run: chown "
        f"{user} {directory}"
    )


def _log_warning(text: str) -> None:
    import logging

    logging.getLogger(__name__).warning("%s", text)


warn: Callable[[str], None] = _log_warning
"""Takes a warning; the plugin sets its own function, since `logging` would delay its start."""
