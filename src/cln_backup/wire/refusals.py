"""An error of the server as a REFUSED packet, and back to the same error at the client."""

from __future__ import annotations

from cln_backup.model.errors import (
    AccessDenied,
    AlreadyExists,
    BackupError,
    BadChange,
    BadPacket,
    Damaged,
    Discontinuity,
    IncompleteCopy,
    Locked,
    NotFound,
    ReplayFailed,
    StorageError,
    Unreachable,
    WriterConflict,
)
from cln_backup.wire.packets import Refusal

_ERRORS = {
    error.exit_code: error
    for error in (
        AccessDenied, AlreadyExists, BackupError, BadChange, BadPacket, Discontinuity, Locked,
        NotFound, ReplayFailed, StorageError, Unreachable, WriterConflict,
    )
}  # fmt: skip


def refusal_of(error: BackupError) -> Refusal:
    """The refusal that tells a client of an error."""
    version = offset = 0
    if isinstance(error, Damaged):
        version, offset = error.good_version, error.offset_bytes
    return Refusal(error.exit_code, version, offset, str(error))


def error_of(refusal: Refusal) -> BackupError:
    """The error that a server refused with."""
    message = refusal.message
    for damaged in (Damaged, IncompleteCopy):
        if refusal.code == damaged.exit_code:
            error = damaged(message, offset_bytes=refusal.offset_bytes)
            error.good_version = refusal.version  # its message says so already
            return error
    return _ERRORS.get(refusal.code, BackupError)(message)
