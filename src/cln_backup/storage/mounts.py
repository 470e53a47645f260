"""The mounted file system of a path, from the kernel's list of mounts."""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple

_TABLE: Final = "/proc/self/mountinfo"
_WITHOUT_FLUSH: Final = ("nobarrier", "barrier=0", "barrier=none")
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One mounted file system.

    Attributes:
        point: the directory where it is mounted.
        kind: its type, such as `ext4`, `nfs4` or `fuse.sshfs`.
        read_only: whether it is mounted read-only.
        source: what was mounted, such as the path of a device.
        flushes: whether a sync empties the cache of the disk itself; not with `nobarrier`.
    """

    point: str
    kind: str
    read_only: bool
    source: str
    flushes: bool = True


def mount_of(path: str) -> Mount | None:
    """The file system of a path; `None` if the system has no such list."""
    try:
        with open(_TABLE, encoding="utf-8", errors="surrogateescape") as table:
            lines = table.readlines()
    except OSError:  # not Linux
        return None
    return longest(lines, os.path.realpath(path))


def longest(lines: list[str], path: str) -> Mount | None:
    """The mount that a path is on, out of a list in the order of mounting."""
    found: Mount | None = None
    for line in lines:
        # See proc_pid_mountinfo(5): ID PARENT DEVICE ROOT POINT OPTIONS … - KIND SOURCE OPTIONS
        own, _, file_system = line.rstrip("\n").partition(" - ")
        fields, (kind, source, options) = own.split(" "), file_system.split(" ", 2)
        point = _unescaped(fields[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and (found is None or len(point) >= len(found.point)):  # the last one is on top
            chosen = {*fields[5].split(","), *options.split(",")}
            flushes = chosen.isdisjoint(_WITHOUT_FLUSH)
            found = Mount(point, kind, "ro" in chosen, _unescaped(source), flushes)
    return found


def _unescaped(field: str) -> str:
    return _ESCAPE.sub(lambda code: chr(int(code[1], 8)), field)
