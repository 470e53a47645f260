"""The processes of the plugin: the worker, its guard and the follower."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.model.health import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterator


class Processes(NamedTuple):
    """The process ids of a node's plugin.

    Attributes:
        plugin: the worker and its guard, as far as they live.
        hidden: whether there may be some that this user cannot see.
    """

    plugin: tuple[int, ...]
    hidden: bool


def gather(directory: str) -> Processes:
    """Looks for processes of the plugin that work in a network directory."""
    found, hidden = [], False
    own = os.stat(directory)
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    arguments = file.read().split(b"\0")
                if not any(b"cln-backup" in os.path.basename(each) for each in arguments[:3]):
                    continue
                if os.path.samestat(os.stat(f"/proc/{name}/cwd"), own):
                    found.append(int(name))
            except PermissionError:
                hidden = True
    return Processes(tuple(sorted(found)), hidden)


def judge(processes: Processes) -> Iterator[Finding]:
    """The findings about the processes of a node that is protected."""
    if len(processes.plugin) > 1:
        yield Finding(
            "no-guard", Level.GOOD, "The plugin's two processes live, the worker and its guard."
        )
    elif len(processes.plugin) == 1:
        yield Finding(
            "no-guard",
            Level.BAD,
            f"Only one of the plugin's two processes lives ({processes.plugin[0]}): if it is "
            "killed too, the node may continue without a backup.",
            "Run the doctor again in a moment: a killed guard is replaced. If it is missing again, "
            "look for what kills processes (dmesg: out of memory).",
        )
    elif processes.hidden:
        yield Finding(
            "no-guard",
            Level.WARNING,
            "This user cannot see the plugin's processes, so whether its guard lives is unknown.",
            "Run the doctor as the node's user or as root.",
        )
