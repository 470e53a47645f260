"""The right to write to a backup in files: one process at a time has it."""

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
"""The fields about the backup, not about the process that holds the lock."""


class Veil(Protocol):
    """Encrypts notes beside an encrypted backup, so that only its keys reveal them."""

    def hide(self, text: str) -> str:
        """The encrypted text."""

    def reveal(self, hidden: str) -> str | None:
        """The decrypted text, or `None` if it was not encrypted with this backup's key."""


class WriterLock:
    """A lock of the operating system on a file of its own; it ends with the process.

    The file stays, and names the last holder. Children of the process must not inherit the
    descriptor, or they keep the lock.
    """

    def __init__(self, path: str, lock_path: str, *, discreet: bool = False) -> None:
        """Takes the lock of the backup at `path`; `discreet` records neither host nor program.

        Raises:
            WriterConflict: another process has it; the message says which.
            StorageError: the lock file cannot be made, or the file system has no locks.
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
                f"{path} is being written by {holder}; this process wrote nothing. If a running "
                "node uses this backup, use its commands (lightning-cli backup-compact, "
                "backup-status). Two nodes must never share a backup.",
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
        """Also locks the backup itself, in case it has several names.

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
        """Makes sure that the backup belongs to this node; `sign` records it if it is new.

        Raises `Discontinuity` if it belongs to another node.
        """
        noted = self._note["node_id"]
        if noted is not None and veil is not None:
            noted = veil.reveal(str(noted)) or "recorded with another key"
        if noted == node_id:
            return
        if noted is not None:
            raise Discontinuity(
                f"{path} is the backup of the node {noted}, but this node is {node_id}. Nothing "
                "was stored. Correct backup.lock: it must name this node's own backup."
            )
        self._unsigned = node_id if veil is None else veil.hide(node_id)

    def sign(self) -> None:
        """Records the node that the backup belongs to, before its first change.

        Not earlier: a node that is refused would otherwise keep out the right one.
        """
        if self._unsigned is not None:
            self._note["node_id"], self._unsigned = self._unsigned, None
            self._write_note()
            fsio.sync(self._fd, op="sync writer lock")

    def note(self, fields: dict[str, object]) -> None:
        """Records more about the backup; written when it returns, but not durable."""
        self._note |= fields
        self._write_note()

    def _write_note(self) -> None:
        note = json.dumps(self._note).encode() + b"\n"
        # In this order: truncated first, a killed process would leave half a note.
        note = note.ljust(fsio.size_bytes(self._fd))
        fsio.write_at(self._fd, [note], 0, op="write writer lock")

    def _noted(self) -> dict[str, object]:
        with contextlib.suppress(ValueError):
            note = json.loads(fsio.read_at(self._fd, 4096, 0, op="read writer lock"))
            if isinstance(note, dict):
                return note
        return {}

    def is_held(self) -> bool:
        """Whether the lock still excludes others; not if its file was removed or replaced."""
        if self._watch is None:
            self._watch = PathWatch(self._path, self._fd)
        return self._watch.leads_to_file()

    def _holder(self) -> tuple[str, int | None]:
        """The holder of the lock, in words, and its process id if it is on this machine."""
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
        """Releases the lock; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def require_locks(fd: int, path: str) -> None:
    """Makes sure that an open file, which no other process uses yet, can be locked.

    Raises `StorageError`; the message names the backup that will be at `path`.
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
    """Any error in its block makes that the writer's last write; signals wait for its end.

    Attributes:
        failed: whether a write failed.
    """

    def __init__(self) -> None:
        self.failed = False

    def require_none_failed(self, path: str) -> None:
        """Raises `StorageError` if a write to the backup at this path has failed before."""
        if self.failed:
            raise StorageError(
                f"A write to {path} failed before, so the contents of the disk are unknown. "
                "Nothing more is written until the backup is opened again."
            )

    def __enter__(self) -> None:
        self.failed = True
        interruption.state.holding += 1

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        interruption.state.holding -= 1
        self.failed = kind is not None
