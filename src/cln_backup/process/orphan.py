"""The end of a child process whose parent has ended."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import Final

_SET_DEATH_SIGNAL: Final = 1


def die_with_parent() -> None:
    """From now on, the system kills this process when the thread that started it has ended.

    The end of the pipe from its parent ends a child as well, and lets it tidy up, but not one
    that was stopped (SIGSTOP). Linux only (prctl(2), `PR_SET_PDEATHSIG`); elsewhere nothing.
    """
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
