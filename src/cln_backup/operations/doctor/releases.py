"""The releases of all programs involved."""

from __future__ import annotations

import platform
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup import __version__
from cln_backup.model.health import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterator


CHECKED: Final = (26, 6)
"""The newest release of lightningd that this program was checked against."""


class Releases(NamedTuple):
    """Versions, as the programs tell them.

    Attributes:
        installed: of this program.
        running: of the plugin in the node; `None` if unknown.
        lightningd: as `getinfo` has it; `None` if unknown.
        python, sqlite: that this program uses.
    """

    installed: str
    running: str | None
    lightningd: str | None
    python: str
    sqlite: str


def gather(running: str | None, lightningd: str | None) -> Releases:
    """Collects the versions."""
    import apsw

    sqlite = apsw.sqlite_lib_version()
    return Releases(__version__, running, lightningd, platform.python_version(), sqlite)


def judge(releases: Releases) -> Iterator[Finding]:
    """The findings about versions."""
    if releases.running not in (None, releases.installed):
        yield Finding(
            "other-release",
            Level.WARNING,
            f"The node runs cln-backup {releases.running}, and {releases.installed} is installed.",
            "Stop the node and start it again when it suits you. Until then, use `lightning-cli "
            "backup-status` and `backup-compact` for the running one.",
        )
    else:
        yield Finding(
            "other-release",
            Level.GOOD,
            f"cln-backup {releases.installed}, Python {releases.python}, SQLite {releases.sqlite}"
            + ("." if releases.lightningd is None else f", lightningd {releases.lightningd}."),
        )
    number = re.match(r"v?(\d+)\.(\d+)", releases.lightningd or "")
    if number is not None and (int(number[1]), int(number[2])) > CHECKED:
        yield Finding(
            "lightningd-release",
            Level.WARNING,
            f"lightningd {releases.lightningd} is newer than what this release was checked "
            f"against (v{CHECKED[0]}.{CHECKED[1]:02}).",
            "Look for a newer release of cln-backup. Run `backup-cli drill`: it proves that the "
            "backup restores to this node's database.",
        )
