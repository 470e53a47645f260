"""The entry point of `backup-cli`, before anything that may be missing is imported."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOPPED = 130


def backup_cli() -> None:
    """The command line: sets up streams and signals, then imports and runs the commands."""
    stop_by(_stop_at_once)
    open_streams()
    gc.disable()  # nothing that is imported is garbage
    try:
        from cln_backup.cli.commands import main
    except ImportError as error:
        from cln_backup.model.errors import broken_installation

        found = broken_installation(error)
        sys.stderr.write(f"Error: {found}\n")
        sys.exit(found.exit_code)
    main()


def stop_by(handler: Callable[[int, FrameType | None], None]) -> None:
    """Installs a handler for the stop signals, except those that nohup ignores."""
    for name in _SIGNALS:
        if signal.getsignal(name) is not signal.SIG_IGN:
            signal.signal(name, handler)


def open_streams() -> None:
    """Opens the standard streams that the process was started without.

    Otherwise the next file opened, perhaps a database, would be used as one.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if getattr(sys, name) is None:
            stream = os.fdopen(fd, "w" if fd else "r", encoding="utf-8", closefd=False)
            setattr(sys, name, stream)


def _stop_at_once(_signal: int, _frame: FrameType | None) -> None:
    os._exit(_STOPPED)  # nothing was started yet
