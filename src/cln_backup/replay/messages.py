"""What a process that reads changes ahead and the one that works on them tell each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from cln_backup.backends.opening import Opening
from cln_backup.process.channel import Message

if TYPE_CHECKING:
    from cln_backup.backends.contract import Backend


class Start(Message):
    """What to read; `head` as `stream_changes` has it."""

    opening: Opening
    head: bool


class Standing(Message):
    """Comes first: which history was opened. Equal ones are the same history."""

    version: int
    prev_version: int
    version_count: int
    head: str | None
    last_change_at: float | None


class Run(Message):
    """Some transactions and riders: version, when it was stored, statements."""

    changes: list[tuple[int, int | None, tuple[str, ...]]]


class RawRun(Message):
    """As `Run`, where a statement is not valid UTF-8."""

    changes: list[tuple[int, int | None, tuple[bytes, ...]]]


class SnapshotBegin(Message):
    """A snapshot; its bytes follow, in as many pieces as they need."""

    version: int
    stored_ms: int | None
    size_bytes: int


class Piece(Message):
    """The next bytes of a snapshot."""

    data: bytes


class End(Message):
    """All changes were sent."""


Said: TypeAlias = Standing | Run | RawRun | SnapshotBegin | Piece | End
SAID: Final = (Standing, Run, RawRun, SnapshotBegin, Piece, End)


def standing_of(backend: Backend) -> Standing:
    """What tells the history that a backend has opened from others."""
    head = None if backend.head is None else backend.head.kind.value
    at = backend.last_change_at
    return Standing(backend.version, backend.prev_version, backend.version_count, head, at)
