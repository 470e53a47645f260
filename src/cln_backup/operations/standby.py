"""A standby: a directory on another machine, whose replica follows a node's backup.

It holds no node's database until it is promoted (`promote`), so no lightningd can start on it
by mistake.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.backends import place_at
from cln_backup.backends.paths import require_outside
from cln_backup.model.errors import (
    AccessDenied,
    AlreadyExists,
    BackupError,
    BadSettings,
    BadUrl,
    Interrupted,
    Locked,
    NotFound,
    ReplayFailed,
    WriterConflict,
)
from cln_backup.node.outside import DATABASE_NAME
from cln_backup.replay.kept import KeptReplica
from cln_backup.storage import directories, fsio, interruption, ownership

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.backends.contract import Reader
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.secrets import Secret

REPLICA_NAME: Final = "backup.replica"

_STEP_S: Final = 1.0
_WAIT_S: Final = 30.0
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_CHECK_FACTOR: Final = 100.0
"""The pause between two checks of the replica, as a multiple of the time that one takes."""
_CHECK_PAUSE_S: Final = 3600.0

_LOOK: Final = "look at standby"
_FOR_THE_OPERATOR: Final = (BadUrl, Locked, AccessDenied, BadSettings, AlreadyExists)


class Followed(NamedTuple):
    """The state of a standby.

    Attributes:
        version: data version of the replica.
        head_version: data version of the backup, when it was last seen.
        at_head: whether the replica had all of it then.
        at: when that was, in seconds since 1970.
        trouble: why the backup cannot be followed at the moment; `None` if it can.
    """

    version: int
    head_version: int
    at_head: bool
    at: float
    trouble: BackupError | None = None


def follow(
    url: str,
    directory: str,
    report: Callable[[Followed], None],
    *,
    secret: Secret | None = None,
    on_event: OnEvent,
) -> Followed:
    """Keeps a replica of the backup in `directory` at the backup's head, until it is stopped.

    The directory is made if it does not exist (not its parent). The replica takes the space of the
    database, and continues after any end of this process. A backup that cannot be read for a
    while, or a copy that is incomplete for a moment, is tried again after growing pauses. `report`
    is called when the state changes, and about once a second while the replica catches up.

    Returns the last state when a signal stops this process.

    Raises:
        AlreadyExists: the directory has a node's database, or is a backup's.
        WriterConflict: another process keeps a standby in the directory.
        NotFound: there is no backup at the URL when this begins.
        BadUrl, Locked, AccessDenied: the backup cannot be opened as it is asked for.
        StorageError: the directory cannot be made.
    """
    place = place_at(url)
    _prepare(directory)
    telling = _Telling(report)
    with interruption.deferred(), ownership.of_node(directory), contextlib.suppress(Interrupted):
        while True:
            try:
                with (
                    contextlib.closing(KeptReplica.open(replica_in(directory))) as replica,
                    place.open_reader(secret=secret, on_event=on_event) as reader,
                ):
                    _follow_while_open(replica, reader, telling)
            except Interrupted:
                raise
            except BackupError as error:
                if isinstance(error, _FOR_THE_OPERATOR):
                    raise
                if not telling.has_followed and isinstance(error, NotFound | WriterConflict):
                    raise
                telling.tell_trouble(error)
            with interruption.at_once():
                time.sleep(telling.next_pause_s())
    return telling.state


def replica_in(directory: str) -> str:
    """Where the replica of a standby is."""
    return os.path.join(directory, REPLICA_NAME)


def _prepare(directory: str) -> None:
    above = os.path.dirname(os.path.abspath(directory))
    if fsio.kind_at(above, op=_LOOK) != "directory":
        raise NotFound(f"The directory {above} does not exist.")
    require_outside(directory)
    database = os.path.join(directory, DATABASE_NAME)
    if os.path.lexists(database):
        raise AlreadyExists(
            f"{database} exists: {directory} is a node's directory, perhaps of a standby that was "
            "promoted. Nothing was changed. Give a standby a directory of its own."
        )
    directories.make(directory, op="make standby")


def _follow_while_open(replica: KeptReplica, reader: Reader, telling: _Telling) -> None:
    """Follows until an error, or until a signal stops this process."""
    if not reader.can_be_followed:
        raise BadUrl(
            "The server's release is too old to be followed, or it is the community's, which has "
            "one client at a time. Upgrade it; or keep the backup there and restore when needed."
        )
    while True:
        done = replica.catch_up(reader, until=time.monotonic() + _STEP_S)
        if done:
            telling.check_if_due(replica)
        telling.tell(Followed(replica.version, reader.version, done, time.time()))
        if done:
            reader.wait_for_more(_WAIT_S)


class _Telling:
    """Reports the state when it changes, and keeps the times of pauses and checks.

    Attributes:
        state: as it was reported last.
        has_followed: whether the backup was read since the start.
    """

    def __init__(self, report: Callable[[Followed], None]) -> None:
        self._report = report
        self.state = Followed(0, 0, at_head=False, at=time.time())
        self.has_followed = False
        self._pause_s = _FIRST_PAUSE_S
        self._check_due_at = 0.0

    def tell(self, state: Followed) -> None:
        """Reports a state without trouble, if it is a different one."""
        is_new = not self.has_followed or state._replace(at=self.state.at) != self.state
        self.has_followed, self._pause_s = True, _FIRST_PAUSE_S
        self.state = state
        if is_new:
            self._report(state)

    def tell_trouble(self, error: BackupError) -> None:
        """Reports why the backup cannot be followed, once for each reason."""
        is_new = str(error) != str(self.state.trouble)
        self.state = self.state._replace(at_head=False, trouble=error)
        if is_new:
            self._report(self.state)

    def next_pause_s(self) -> float:
        """The pause before the next attempt: longer after each one that failed."""
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return pause_s

    def check_if_due(self, replica: KeptReplica) -> None:
        """Checks the replica, rarely if that takes long.

        Raises:
            ReplayFailed: it is damaged, and starts from the beginning of the history again.
        """
        begun = time.monotonic()
        if begun < self._check_due_at:
            return
        try:
            replica.check()
        except ReplayFailed:
            replica.start_anew()
            raise
        took_s = time.monotonic() - begun
        self._check_due_at = begun + took_s + max(_CHECK_PAUSE_S, took_s * _CHECK_FACTOR)
