"""A follower's process, as its parent sees it."""

from __future__ import annotations

import os
import select
import signal
import time
from typing import TYPE_CHECKING

from cln_backup.backends.opening import Opening
from cln_backup.follower.messages import SAYS, Alarm, Backup, Progress, Start
from cln_backup.process.child import Child

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typing_extensions import Self

    from cln_backup.follower.messages import Said

WAIT_S = 120.0


class Follower:
    """Follows one backup; at the normal priority, so that a busy machine does not starve it."""

    def __init__(
        self,
        url: str,
        directory: Path,
        *obsolete: Path,
        follows: bool = True,
        database: Path | None = None,
    ) -> None:
        node = None if database is None else str(database)
        backups = [Backup("node", Opening(url), str(directory), node)] if follows else []
        self.child: Child[Said] = Child(
            "cln_backup.follower.process",
            Start(backups, [str(path) for path in obsolete]),
            SAYS,
            work="follows",
        )
        self.heard: list[Said] = []

    def hear(self, wanted: Callable[[Said], bool]) -> Said:
        """Waits until it says something that is wanted."""
        until = time.monotonic() + WAIT_S
        while not (self.heard and wanted(self.heard[-1])):
            left_s = until - time.monotonic()
            assert left_s > 0, self.heard
            assert select.select([self.child], [], [], left_s)[0], self.heard
            said = self.child.step()
            if said is not None:
                self.heard.append(said)
        return self.heard[-1]

    def hear_version(self, version: int) -> None:
        """Waits until it has proven this version."""
        self.hear(lambda said: isinstance(said, Progress) and said.proven_version == version)
        assert self.alarms() == []

    def hear_alarm(self) -> Alarm:
        said = self.hear(lambda said: isinstance(said, Alarm))
        assert isinstance(said, Alarm)
        return said

    def alarms(self) -> list[Alarm]:
        return [said for said in self.heard if isinstance(said, Alarm)]

    def kill(self) -> None:
        os.kill(self.child.pid, signal.SIGKILL)
        self.child.kill()

    def close(self) -> None:
        """Ends it as the plugin does."""
        self.child.close()
        self.child.wait(WAIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.child.kill()
