"""The follower's process: `python -m cln_backup.follower.process`.

It has the lowest priority, and ends with its parent. It loses nothing when it is killed.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cln_backup.follower.messages import ASKS, Asked, Removed, Start
from cln_backup.process.parent import Parent, serve

if TYPE_CHECKING:
    from cln_backup.follower.followed import FollowedBackup


def _run(start: Start, parent: Parent[Asked]) -> None:
    """Follows the backups until the parent ends."""
    from cln_backup.follower.followed import FollowedBackup
    from cln_backup.replay.kept_directory import remove_replica

    for directory in start.obsolete:
        remove_replica(directory)
        parent.say(Removed(directory))
    with contextlib.ExitStack() as opened:
        backups: dict[str, FollowedBackup] = {}
        for backup in start.backups:
            backups[backup.name] = followed = FollowedBackup(backup, parent.say)
            opened.callback(followed.close)
        while backups:
            asked = parent.next_within(min(followed.due_s() for followed in backups.values()))
            if asked is not None:
                _serve(asked, backups, parent)
            for followed in backups.values():
                followed.look()


def _serve(asked: Asked, backups: dict[str, FollowedBackup], parent: Parent[Asked]) -> None:
    """Does what the parent asks, for one of the backups."""
    raise AssertionError(type(asked).__name__, backups, parent)


if __name__ == "__main__":
    serve(_run, Start, *ASKS)
