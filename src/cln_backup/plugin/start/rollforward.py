"""The roll forward, from the plugin's side: asked for before the node is halted, and awaited."""

from __future__ import annotations

import contextlib
import os
import time
from shlex import quote
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import Discontinuity, StorageError
from cln_backup.node.outside import lightningd_above
from cln_backup.node.rollforward_marker import (
    LOG_NAME,
    MARKER_NAME,
    Marker,
    is_at_work,
    last_log_line,
    read_marker,
    remove_log,
    remove_marker,
    write_marker,
)
from cln_backup.node.settings import OnPowerLoss, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from cln_backup.process.channel import Message
    from cln_backup.process.child import Child

_NODE_ENDS_S: Final = 600.0
_PREVIOUS_ENDS_S: Final = 2.0
_AWAITED_S: Final = 90.0
"""lightningd gives its plugins 120 s to say what they are."""

_POLL_S: Final = 0.05
_ONLY_LOOKS: Final = frozenset((b"--help", b"-h", b"--version", b"-V", b"--list-features-only"))


def ask_and_halt(directory: str, database: str, found: str, restore: str) -> NoReturn:
    """Has the database rolled forward as soon as the node has ended, and halts the node.

    The request is on stable storage. If the process that does it is killed with the node, as in a
    container, the next start does it (`await_asked`).

    Args:
        directory: the node's network directory.
        database: the path of its database.
        found: the first words of the message: what was found.
        restore: how to restore instead, for an operator who does it by hand.
    """
    by_hand = f"backup-cli rollforward --lightning-dir {quote(directory)}"
    if read_settings(directory).on_power_loss is OnPowerLoss.HALT:
        raise Discontinuity(
            f"{found}. It is safe to bring the database forward to the backup. Run: {by_hand}. Or "
            f"{restore}"
        )
    marker = read_marker(directory)
    if marker is not None and marker.refused is not None:
        raise Discontinuity(f"{found}. {marker.refused}")
    earlier = last_log_line(directory)
    try:
        if marker is None:
            from cln_backup.node.pid_file import pid_file_in_use, pid_file_of

            pid_file = pid_file_in_use(lightningd_above()) or pid_file_of(directory)
            write_marker(directory, Marker(os.path.abspath(database), pid_file))
        process = _start(directory, _NODE_ENDS_S).pid
    except StorageError as error:
        raise Discontinuity(
            f"{found}. It is safe to bring the database forward to the backup, but that could not "
            f"be begun: {error}. When the cause is removed, start the node again, or run: {by_hand}"
        ) from error
    raise Discontinuity(
        f"{found}. It is safe to bring the database forward to the backup: the node is halted, "
        f"and process {process} does that now. Start the node again in a moment, if nothing else "
        f"starts it. {directory}/{LOG_NAME} says what was done"
        + (f"; its last line was: {earlier}" if earlier else "")
        + f". To do it by hand: {by_hand}"
    )


def await_asked(directory: str) -> None:
    """Before this plugin answers lightningd for the first time: completes what was asked for.

    lightningd starts its plugins before it locks its pid file and opens its database, so the work
    can be done here as well. This matters where the end of a node takes all other processes with
    it, and where a supervisor gives up after some starts that fail at once. Does nothing if
    lightningd was only asked for help, or if a node is running.
    """
    if not os.path.lexists(os.path.join(directory, MARKER_NAME)) or _only_looks():
        return
    with contextlib.suppress(Exception):  # the first call of `db_write` tells what is wrong
        marker = read_marker(directory)
        if marker is None or marker.refused is not None:
            return
        if read_settings(directory).on_power_loss is OnPowerLoss.HALT:
            return
        process = _start(directory, _PREVIOUS_ENDS_S)
        deadline_s = time.monotonic() + _AWAITED_S
        while time.monotonic() < deadline_s and (process.is_running() or is_at_work(directory)):
            time.sleep(_POLL_S)


def conclude(directory: str, log: Callable[[str], None]) -> None:
    """Tells what was done, once a database continues its backup; removes what is not needed."""
    if os.path.lexists(os.path.join(directory, MARKER_NAME)):
        remove_marker(directory)
    line = last_log_line(directory)
    if line is not None:
        log(f"{LOG_NAME}: {line}")
        remove_log(directory)


def _start(directory: str, wait_s: float) -> Child[Message]:
    """Starts the process, which is in a session of its own and ends by itself."""
    from cln_backup.plugin.rollforward_process import MODULE, Begin
    from cln_backup.process.channel import Message
    from cln_backup.process.child import Child

    begin = Begin(directory, wait_s)
    child = Child(MODULE, begin, (Message,), work="rolls the database forward")
    child.release()
    return child


def _only_looks() -> bool:
    """Whether lightningd was started only to print something."""
    with contextlib.suppress(OSError), open(f"/proc/{lightningd_above()}/cmdline", "rb") as file:
        return not _ONLY_LOOKS.isdisjoint(file.read().split(b"\0"))
    return False
