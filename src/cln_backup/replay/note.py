"""`position.json` beside a kept replica: its position and its proof, to read while it is in use.

Nothing depends on it: what the replica needs is in its file. It is never synced, and rewritten in
place, so that it costs nothing.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.model.errors import StorageError
from cln_backup.model.position import DIGEST_BYTES, Position
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from typing import Any

NOTE_NAME: Final = "position.json"
_BYTES: Final = 512


class Note(NamedTuple):
    """The state of a replica, as far as it is known without opening it.

    Attributes:
        position: of what is committed.
        stored_ms: when its last change was stored, as `Change.stored_ms`.
        proven_version: the version up to which the backup has been replayed, its head included.
        proven_at: when that was found, in seconds since 1970.
    """

    position: Position
    stored_ms: int | None = None
    proven_version: int = 0
    proven_at: float | None = None


def read_note(directory: str) -> Note | None:
    """The note in a replica's directory; `None` if there is none that can be understood."""
    path = os.path.join(directory, NOTE_NAME)
    try:
        fd = fsio.open_existing(path, writable=False, op="read position")
    except StorageError:
        return None
    try:
        return _understood(fsio.read_at(fd, _BYTES, 0, op="read position"))
    except StorageError:
        return None
    finally:
        os.close(fd)


def _understood(content: bytes) -> Note | None:
    try:
        fields: Any = json.loads(content)
        digest = None if fields["digest"] is None else bytes.fromhex(fields["digest"])
        version, changes, stored_ms, proven_version = (
            None if fields[name] is None else int(fields[name])
            for name in ("version", "changes", "stored_ms", "proven_version")
        )
        proven_at = None if fields["proven_at"] is None else float(fields["proven_at"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    if version is None or changes is None or len(digest or bytes(DIGEST_BYTES)) != DIGEST_BYTES:
        return None
    return Note(Position(version, changes, digest), stored_ms, proven_version or 0, proven_at)


class NoteFile:
    """The open file; the replica's only process writes it."""

    def __init__(self, directory: str) -> None:
        self._fd = fsio.open_lock(os.path.join(directory, NOTE_NAME), op="open position")

    def write(self, note: Note | None) -> None:
        """Writes the note, or makes it empty. Raises `StorageError`."""
        fields: dict[str, object] = {}
        if note is not None:
            version, changes, digest = note.position
            fields = {"version": version, "changes": changes, "digest": digest and digest.hex()}
            fields |= dict(zip(Note._fields[1:], note[1:], strict=True))
        content = json.dumps(fields).encode()
        fsio.write_at(self._fd, [content.ljust(_BYTES - 1) + b"\n"], 0, op="write position")

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)
