"""The lowest priority of a process, for the processor and for the disk."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

_LOWEST: Final = 19
_CALLS: Final = {
    "x86_64": 251,
    "i686": 289,
    "aarch64": 30,
    "armv7l": 314,
    "armv6l": 314,
    "riscv64": 30,
    "ppc64le": 273,
    "s390x": 282,
}
"""The number of the system call ioprio_set(2), for which the C library has no function."""

_THIS_PROCESS: Final = 1
_IDLE: Final = 3 << 13


def yield_to_all() -> None:
    """From now on this process runs, and uses the disk, when no other process wants to.

    The disk's part is left out where it is not supported: other systems than Linux, and most
    disk schedulers.
    """
    with contextlib.suppress(OSError):
        os.nice(_LOWEST)
    call = _CALLS.get(os.uname().machine)
    if sys.platform == "linux" and call is not None:
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).syscall(call, _THIS_PROCESS, 0, _IDLE)
