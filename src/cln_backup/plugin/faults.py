"""Reports unexpected errors, which are bugs of this program."""

from __future__ import annotations

import os

from cln_backup.model.errors import broken_installation


def fault(error: Exception) -> str:
    """Names an error without its text, which may contain anything."""
    if isinstance(error, ImportError):
        return str(broken_installation(error))
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = "an unknown place"
    if frame is not None:
        place = f"{os.path.basename(frame.tb_frame.f_code.co_filename)}:{frame.tb_lineno}"
    return f"cln-backup has a fault ({type(error).__name__} in {place}); please report this."
