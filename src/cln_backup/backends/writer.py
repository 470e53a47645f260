"""The right to write to a backup that is made of files: one process at a time has it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time

from cln_backup import fsio
from cln_backup.errors import StorageError, WriterConflict


class WriterLock:
    """A lock of the operating system on `PATH.writer`; it dies with the process that holds it.

    The file stays, and names the last holder. Children of the process must not keep the
    descriptor, or the lock lives on in them.
    """

    def __init__(self, path: str) -> None:
        """Takes the lock for the backup at `path`.

        Raises:
            WriterConflict: another process has it; the message says which.
            StorageError: the lock file cannot be made, or the file system knows no locks.
        """
        self._path = lock_path = f"{path}.writer"
        self._fd = fsio.open_lock(lock_path, op="open writer lock")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._holder()
            self.release()
            raise WriterConflict(
                f"{path} is being written by {holder}; this process wrote nothing. If a node runs "
                "on this backup, work through it (lightning-cli backup-compact, backup-status); "
                "two nodes must never share a backup."
            ) from None
        except OSError as error:
            self.release()
            raise StorageError(f"Cannot lock {lock_path}: {error.strerror}") from error
        note_fields = {
            "pid": os.getpid(),
            "program": os.path.basename(sys.argv[0]),
            "host": os.uname().nodename,
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        note = json.dumps(note_fields).encode() + b"\n"
        fsio.truncate(self._fd, len(note), op="write writer lock")
        fsio.write_at(self._fd, [note], 0, op="write writer lock")

    def is_held(self) -> bool:
        """Whether the lock still excludes others; not when its file was removed or replaced."""
        return fsio.same_file(self._path, self._fd)

    def _holder(self) -> str:
        with contextlib.suppress(ValueError, TypeError, KeyError, StorageError):
            note = json.loads(fsio.read_at(self._fd, 4096, 0, op="read writer lock"))
            return (
                f"process {int(note['pid'])} ({note['program']} on {note['host']}, "
                f"since {note['since']})"
            )
        return "another process"

    def release(self) -> None:
        """Gives the lock back; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
