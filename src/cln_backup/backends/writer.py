"""The right to write to a backup that is made of files: one process at a time has it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from typing import Protocol

from cln_backup.model.errors import Discontinuity, StorageError, WriterConflict
from cln_backup.storage import fsio, interruption
from cln_backup.storage.path_watch import PathWatch

_KEPT = ("node_id", "backup_id", "segment")
"""What is noted of the backup, and not of the process that holds the lock."""


class Veil(Protocol):
    """Hides what is noted beside an encrypted backup from those who cannot unlock it."""

    def hide(self, text: str) -> str:
        """The text in a form that tells nothing of it."""

    def reveal(self, hidden: str) -> str | None:
        """The text again, or `None` where it was not hidden by this backup's key."""


class WriterLock:
    """A lock of the operating system on a file of its own; it dies with the process that holds it.

    The file stays, and names the last holder. Children of the process must not keep the
    descriptor, or the lock lives on in them.
    """

    def __init__(self, path: str, lock_path: str, *, discreet: bool = False) -> None:
        """Takes the lock for the backup at `path`; `discreet` notes neither host nor program.

        Raises:
            WriterConflict: another process has it; the message says which.
            StorageError: the lock file cannot be made, or the file system knows no locks.
        """
        self._path = lock_path
        self._unsigned: str | None = None
        self._watch: PathWatch | None = None
        self._fd = fsio.open_lock(lock_path, op="open writer lock", like=path)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder, pid = self._holder()
            self.release()
            raise WriterConflict(
                f"{path} is being written by {holder}; this process wrote nothing. If a node runs "
                "on this backup, work through it (lightning-cli backup-compact, backup-status); "
                "two nodes must never share a backup.",
                holder=pid,
            ) from None
        except OSError as error:
            self.release()
            raise _no_locks(lock_path, error) from error
        try:
            noted = {"node_id": None} | self._noted()
            self._note: dict[str, object] = {
                **{name: noted[name] for name in _KEPT if name in noted},
                "pid": os.getpid(),
                "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            if not discreet:
                self._note["program"] = os.path.basename(sys.argv[0])
                self._note["host"] = os.uname().nodename
            self._write_note()
        except BaseException:
            self.release()
            raise

    def lock_too(self, fd: int, path: str) -> None:
        """Locks the backup itself as well, for the case that it has several names.

        Raises:
            WriterConflict: another process has locked it.
        """
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WriterConflict(
                f"{path} is being written by another process, perhaps under another name; this "
                "process wrote nothing."
            ) from None
        except OSError as error:
            raise _no_locks(path, error) from error

    def claim(self, node_id: str, path: str, veil: Veil | None = None) -> None:
        """Makes sure that this is the node's backup; what is not noted yet, `sign` notes.

        Raises `Discontinuity` if it is another's.
        """
        noted = self._note["node_id"]
        if noted is not None and veil is not None:
            noted = veil.reveal(str(noted)) or "that another key has noted there"
        if noted == node_id:
            return
        if noted is not None:
            raise Discontinuity(
                f"{path} is the backup of the node {noted}, and this node is {node_id}. Nothing "
                "was stored. Look at backup.lock: it must name this node's own backup."
            )
        self._unsigned = node_id if veil is None else veil.hide(node_id)

    def sign(self) -> None:
        """Notes whose backup this is, before the first change of the one who claimed it.

        Not earlier: a node that is refused would keep the right one out.
        """
        if self._unsigned is not None:
            self._note["node_id"], self._unsigned = self._unsigned, None
            self._write_note()
            fsio.sync(self._fd, op="sync writer lock")

    def note(self, fields: dict[str, object]) -> None:
        """Notes more of the backup; in the kernel's hands when it returns, not durable."""
        self._note |= fields
        self._write_note()

    def _write_note(self) -> None:
        note = json.dumps(self._note).encode() + b"\n"
        # In this order: cut off before, a process that is killed between would leave half a note.
        note = note.ljust(fsio.size_bytes(self._fd))
        fsio.write_at(self._fd, [note], 0, op="write writer lock")

    def _noted(self) -> dict[str, object]:
        with contextlib.suppress(ValueError):
            note = json.loads(fsio.read_at(self._fd, 4096, 0, op="read writer lock"))
            if isinstance(note, dict):
                return note
        return {}

    def is_held(self) -> bool:
        """Whether the lock still excludes others; not when its file was removed or replaced."""
        if self._watch is None:
            self._watch = PathWatch(self._path, self._fd)
        return self._watch.leads_to_file()

    def _holder(self) -> tuple[str, int | None]:
        """Who has the lock, in words, and its process id where that is of this machine."""
        with contextlib.suppress(StorageError):
            note = self._noted()
            if "pid" in note:
                pid, host = note["pid"], note.get("host")
                what = f"{note.get('program')} on {host}, " if host else ""
                who = f"process {pid} ({what}since {note.get('since')})"
                here = host in (None, os.uname().nodename)
                return who, pid if here and isinstance(pid, int) else None
        return "another process", None

    def release(self) -> None:
        """Gives the lock back; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def require_locks(fd: int, path: str) -> None:
    """Makes sure that an open file, which nobody else knows of, can be locked at all.

    Raises `StorageError`; the message names the backup that is to be at `path`.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise _no_locks(path, error) from error


def _no_locks(path: str, error: OSError) -> StorageError:
    return StorageError(
        f"Cannot lock {path}: {error.strerror}. Its file system has no locks, or its lock service "
        "is not running, so two nodes could write to one backup. Choose a place on another file "
        "system, or a server (socket:); for NFS, mount it with version 4."
    )


class LastWrite:
    """Whatever stops in its block makes that a writer's last write; a signal waits for its end.

    Attributes:
        failed: whether one did.
    """

    def __init__(self) -> None:
        self.failed = False

    def require_none_failed(self, path: str) -> None:
        """Raises `StorageError` where a write to the backup at this path has failed before."""
        if self.failed:
            raise StorageError(
                f"A write to {path} failed before, and what reached the disk is not known; "
                "nothing more is written until the backup is opened anew."
            )

    def __enter__(self) -> None:
        self.failed = True
        interruption.state.holding += 1

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        interruption.state.holding -= 1
        self.failed = kind is not None
