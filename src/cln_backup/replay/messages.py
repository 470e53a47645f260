"""The messages between a process that reads changes ahead and the one that processes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from cln_backup.backends.opening import Opening
from cln_backup.process.channel import Message

if TYPE_CHECKING:
    from cln_backup.backends.contract import Reader


class Start(Message):
    """The request; `head` is as for `stream_changes`."""

    opening: Opening
    head: bool


class Standing(Message):
    """The first message: identifies the opened history. Equal ones mean the same history."""

    version: int
    changes: int
    digest: bytes | None
    version_count: int
    head: str | None
    last_change_at: float | None


class From(Message):
    """The answer to `Standing`: send the changes from this version on."""

    version: int


class Run(Message):
    """A batch of transactions and riders: version, time of storage, statements."""

    changes: list[tuple[int, int | None, tuple[str, ...]]]


class RawRun(Message):
    """As `Run`, if a statement is not valid UTF-8."""

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


def standing_of(reader: Reader) -> Standing:
    """The identification of the history that a reader has opened."""
    found, at = reader.standing, reader.last_change.at
    head = None if found.head is None else found.head.kind.value
    return Standing(*found.position, found.version_count, head, at)
