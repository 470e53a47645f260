"""The errors of this project, each with its exit code of `backup-cli`.

    BackupError            1
    ├── BadUrl             3   the backend URL cannot be understood
    ├── NotFound           4   no backup, database or directory at that path
    ├── AlreadyExists      5   the destination exists, and is never overwritten
    ├── NodeRunning        6   lightningd is running on the directory
    ├── WriterConflict     7   another process writes to this backup
    ├── Damaged            8   the backup contains invalid bytes
    │   └── IncompleteCopy 20  the end of the backup is missing
    ├── ReplayFailed       9   the changes do not make a valid database
    ├── StorageError      10   the operating system failed a read, write or sync
    │   └── Unreachable   15   a server did not answer before the timeout
    ├── BadChange         11   a change that cannot be stored as it is
    ├── BadSettings       12   `backup.lock` is missing or cannot be understood
    ├── Discontinuity     13   the node's database and the backup do not match
    ├── BadPacket         14   the other side of a connection sent an invalid packet
    ├── AccessDenied      16   a server and its client do not trust each other
    ├── Locked            17   the backup is encrypted, and was not unlocked
    ├── MigrationOpen     21  a migration of the database is not finished
    ├── OutputLost        18   the command succeeded, but its output could not be written
    ├── BrokenInstallation 19  a part of this program is missing
    └── Interrupted      130   stopped by the operator

Code 2 is a wrong command line. Each message says what happened, what is safe and what to do next,
in plain English, and contains no SQL and no secrets.
"""

from __future__ import annotations


class BackupError(Exception):
    """Base of all errors of this project; its `str()` is written for the operator."""

    exit_code = 1


class BadUrl(BackupError):
    """The backend URL cannot be understood; nothing was touched."""

    exit_code = 3


class NotFound(BackupError):
    """No backup, database or directory at that path; nothing was created."""

    exit_code = 4


class AlreadyExists(BackupError):
    """The destination exists; nothing was overwritten."""

    exit_code = 5


class NodeRunning(BackupError):
    """The directory belongs to a running lightningd; nothing was touched."""

    exit_code = 6


class WriterConflict(BackupError):
    """Another process writes to this backup; this one wrote nothing.

    Attributes:
        holder: its process id, if it is known and on this machine.
    """

    exit_code = 7

    def __init__(self, message: str, *, holder: int | None = None) -> None:
        super().__init__(message)
        self.holder = holder


class Damaged(BackupError):
    """The backup contains invalid bytes; nothing was changed.

    Attributes:
        offset_bytes: where in the file the first wrong byte may be.
        good_version: the last data version that can be trusted; 0 if unknown.
    """

    exit_code = 8

    def __init__(self, message: str, *, offset_bytes: int = 0, good_version: int = 0) -> None:
        super().__init__(message)
        self.offset_bytes = offset_bytes
        self.good_version = 0
        self.good_up_to(good_version)

    def good_up_to(self, version: int) -> None:
        """Adds the last good data version, if it is known (not 0) and was not added before."""
        if version > 0 and self.good_version == 0:
            self.good_version = version
            self.args = (f"{self} Everything up to version {version} can be read.",)


class IncompleteCopy(Damaged):
    """The end of the backup is missing, as in a copy that stopped early; nothing was changed.

    `good_version` is the last data version in the backup; newer changes may have been answered.
    """

    exit_code = 20


class ReplayFailed(BackupError):
    """The changes cannot be replayed into a database; the result was removed.

    Attributes:
        good_version: the last data version that can be replayed.
    """

    exit_code = 9

    def __init__(self, message: str, *, good_version: int = 0) -> None:
        super().__init__(message)
        self.good_version = good_version


class StorageError(BackupError):
    """The operating system failed a read, write or sync."""

    exit_code = 10


class BadChange(BackupError):
    """A change that cannot be stored as it is; nothing was written."""

    exit_code = 11


class BadSettings(BackupError):
    """`backup.lock` is missing or cannot be understood."""

    exit_code = 12


class Discontinuity(BackupError):
    """The node's database and the backup do not match; nothing was written."""

    exit_code = 13


class BadPacket(BackupError):
    """The other side of a connection sent an invalid packet; nothing in it was used."""

    exit_code = 14


class Unreachable(StorageError):
    """A server did not answer before the timeout.

    Whether the last change reached it is unknown until the backup is opened again.
    """

    exit_code = 15


class AccessDenied(BackupError):
    """A server does not trust its client, or the client not the server; nothing was stored."""

    exit_code = 16


class Locked(BackupError):
    """The backup is encrypted and was not unlocked; nothing in it was read or changed."""

    exit_code = 17


class MigrationOpen(BackupError):
    """A migration of the database is not finished; a compaction would fold the way back.

    Attributes:
        version: the data version before it.
    """

    exit_code = 21

    def __init__(self, message: str, *, version: int = 0) -> None:
        super().__init__(message)
        self.version = version


class OutputLost(BackupError):
    """The command succeeded, but standard output cannot be written to.

    Attributes:
        reader_is_gone: the other end of a pipe was closed, which is not an error.
    """

    exit_code = 18

    def __init__(self, message: str, *, reader_is_gone: bool = False) -> None:
        super().__init__(message)
        self.reader_is_gone = reader_is_gone


class BrokenInstallation(BackupError):
    """A part of this program is missing, or belongs to another release."""

    exit_code = 19


class Interrupted(BackupError):
    """Stopped by the operator; the unfinished result was removed."""

    exit_code = 130


def broken_installation(error: ImportError) -> BrokenInstallation:
    """An import error, as an error with advice for the operator."""
    return BrokenInstallation(
        f"The installation of cln-backup is incomplete, or changed while it ran ({error}). "
        "Start the program again; if that does not help, reinstall it."
    )
