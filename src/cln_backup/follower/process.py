"""The follower's process: `python -m cln_backup.follower.process`.

It has the lowest priority, and ends with its parent. It loses nothing when it is killed.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from cln_backup.follower.messages import ASKS, Removed, Start
from cln_backup.model.errors import BackupError
from cln_backup.process.orphan import die_with_parent
from cln_backup.process.parent import Parent, serve

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.follower.messages import Asked

_log = logging.getLogger(__name__)


def _run(start: Start, parent: Parent[Asked]) -> None:
    """Follows the backups until the parent ends."""
    from cln_backup.follower.compacting import Compacting
    from cln_backup.follower.followed import FollowedBackup
    from cln_backup.replay.kept_directory import remove_replica

    for directory in start.obsolete:
        try:
            remove_replica(directory)
        except (BackupError, OSError, ValueError) as error:
            if not start.backups:
                raise
            _log.warning("The former replica in %s is still there: %s", directory, error)
        else:
            parent.say(Removed(directory))
    with contextlib.ExitStack() as opened:
        backups: dict[str, FollowedBackup] = {}

        def run(work: Callable[[], None]) -> None:
            parent.aside(work).result()

        def look_at_all() -> None:
            for followed in backups.values():
                followed.look()

        compactions: dict[str, Compacting] = {}
        for backup in start.backups:
            backups[backup.name] = followed = FollowedBackup(backup, parent.say, run)
            compactions[backup.name] = Compacting(followed, parent, look_at_all)
            opened.callback(followed.close)
            opened.callback(compactions[backup.name].close)
        while backups:
            asked = parent.next_within(min(followed.due_s() for followed in backups.values()))
            if asked is not None:
                compactions[asked.name].serve(asked)
            look_at_all()


if __name__ == "__main__":
    die_with_parent()  # first: it may be stopped as soon as it is there
    serve(_run, Start, *ASKS)
