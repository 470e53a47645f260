"""Everything that can go wrong, with the exit code that `backup-cli` gives for it.

    BackupError            1
    ├── BadUrl             3   the backend URL cannot be understood
    ├── NotFound           4   no backup, database or directory at that place
    ├── AlreadyExists      5   something stands where nothing may be overwritten
    ├── NodeRunning        6   lightningd runs on the directory
    ├── WriterConflict     7   another process writes to this backup
    ├── Damaged            8   the backup holds bytes that cannot be right
    │   └── IncompleteCopy 20  the end of the backup is missing
    ├── ReplayFailed       9   the changes do not make a database
    ├── StorageError      10   the operating system failed a read, write or sync
    │   └── Unreachable   15   a server did not answer in the time that is given to it
    ├── BadChange         11   a change that cannot be stored as it is
    ├── BadSettings       12   `backup.lock` is missing or cannot be understood
    ├── Discontinuity     13   the node's database and the backup do not fit together
    ├── BadPacket         14   the other side of a connection sent what cannot be right
    ├── AccessDenied      16   a server and its client do not trust each other
    ├── Locked            17   the backup is encrypted, and was not unlocked
    ├── OutputLost        18   the work is done; what there is to say could not be written
    ├── BrokenInstallation 19  a part of this program is missing
    └── Interrupted      130   stopped by the operator

Code 2 is a wrong command line. Each message says what happened, what is safe and what to do next,
in plain words, and holds no SQL and no secrets.
"""

from __future__ import annotations


class BackupError(Exception):
    """Base of all errors of this project; `str()` of it is written for the operator."""

    exit_code = 1


class BadUrl(BackupError):
    """The backend URL cannot be understood; nothing was touched."""

    exit_code = 3


class NotFound(BackupError):
    """No backup, database or directory at that place; nothing was created."""

    exit_code = 4


class AlreadyExists(BackupError):
    """Something stands where nothing may be overwritten; it was left as it is."""

    exit_code = 5


class NodeRunning(BackupError):
    """The directory belongs to a running lightningd; nothing was touched."""

    exit_code = 6


class WriterConflict(BackupError):
    """Another process holds the right to write; this one wrote nothing.

    Attributes:
        holder: its process id, where it is known and of this machine.
    """

    exit_code = 7

    def __init__(self, message: str, *, holder: int | None = None) -> None:
        super().__init__(message)
        self.holder = holder


class Damaged(BackupError):
    """The backup holds bytes that cannot be right; nothing was changed.

    Attributes:
        offset_bytes: where in the file the first wrong byte may be.
        good_version: the last data version that can be trusted; 0 where it is not known.
    """

    exit_code = 8

    def __init__(self, message: str, *, offset_bytes: int = 0, good_version: int = 0) -> None:
        super().__init__(message)
        self.offset_bytes = offset_bytes
        self.good_version = 0
        self.good_up_to(good_version)

    def good_up_to(self, version: int) -> None:
        """Adds which data version is the last good one, once, where it is known (not 0)."""
        if version > 0 and self.good_version == 0:
            self.good_version = version
            self.args = (f"{self} All up to version {version} can be read.",)


class IncompleteCopy(Damaged):
    """The end of the backup is missing, as in a copy that stopped early; nothing was changed.

    `good_version` is the last data version that is there; newer changes may have been answered.
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
    """The node's database and the backup do not fit together; nothing was written."""

    exit_code = 13


class BadPacket(BackupError):
    """The other side of a connection sent what cannot be right; nothing of it was used."""

    exit_code = 14


class Unreachable(StorageError):
    """A server did not answer in the time that is given to it.

    Whether the last change reached it is found out by the next one that opens the backup.
    """

    exit_code = 15


class AccessDenied(BackupError):
    """A server does not trust its client, or the client not the server; nothing was stored."""

    exit_code = 16


class Locked(BackupError):
    """The backup is encrypted and was not unlocked; nothing of it was read or changed."""

    exit_code = 17


class OutputLost(BackupError):
    """What was asked for is done, and standard output cannot be written to.

    Attributes:
        reader_is_gone: the other end of a pipe was closed, which is no error.
    """

    exit_code = 18

    def __init__(self, message: str, *, reader_is_gone: bool = False) -> None:
        super().__init__(message)
        self.reader_is_gone = reader_is_gone


class BrokenInstallation(BackupError):
    """A part of this program is missing, or of another release."""

    exit_code = 19


class Interrupted(BackupError):
    """Stopped by the operator; what was being built was removed."""

    exit_code = 130


def broken_installation(error: ImportError) -> BrokenInstallation:
    """What an error of an import means to an operator."""
    return BrokenInstallation(
        f"The installation of cln-backup is incomplete, or was changed while it ran ({error}). "
        "Start the program again; if that does not help, install it again."
    )
