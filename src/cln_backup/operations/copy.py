"""Copies a backup between any two places and formats, and compares the two."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from cln_backup.backends import (
    backend_class,
    create_backend,
    open_backend,
    redacted,
    require_outside_backups,
)
from cln_backup.backends.contract import size_of
from cln_backup.backends.secrets import unlocking_with
from cln_backup.model.errors import AlreadyExists, BackupError, Damaged, Interrupted, NotFound
from cln_backup.replay.ahead import read_ahead
from cln_backup.storage import interruption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cln_backup.backends.contract import Backend, Size
    from cln_backup.model.change import Change


_EXACTNESS_S: Final = 3.0
"""FAT stores times in steps of two seconds."""


class Copied(NamedTuple):
    """The result of a copy.

    Attributes:
        version: data version of both backups.
        version_count: number of changes.
        digest: SHA-256 over all changes, equal for both backups, in hexadecimal.
        keeps_time: whether the copy has the same time of the last change.
    """

    version: int
    version_count: int
    digest: str
    keeps_time: bool


Step: TypeAlias = "Callable[[Change], None]"


def _in_silence(_of: Size) -> AbstractContextManager[Step | None]:
    return nullcontext()


def _ignore(_change: Change) -> None:
    pass


def copy(
    source_url: str,
    target_url: str,
    progress: Callable[[Size], AbstractContextManager[Step | None]] = _in_silence,
) -> Copied:
    """Copies every change, then reads the copy back and compares.

    Each change keeps the time at which it was stored, if both formats store times; the last one
    also if one is `file:`, which has only the file's time. A node's start after a loss of power
    depends on it. A server stores the time of the copy.

    The copy gets its name after it was read back: before, or if the copy fails, there is nothing
    that could be mistaken for a backup, which would be an older one. Only a server cannot hide an
    unfinished copy; there it must be removed by hand. The source is unchanged.

    `progress` gets the size of the backup; its result is called after each change that was
    written, and after each that was read back.

    Raises:
        AlreadyExists: the target exists, or is inside a backup; nothing was made.
        Damaged: the source cannot be read to its end, or the copy differs.
        BadChange: the target's format cannot store a change.
        BackupError: as the two backends raise.
    """
    require_outside_backups(target_url)
    with interruption.deferred(), open_backend(source_url) as source:
        if source.head is None:
            raise NotFound(f"Nothing to copy: the backup {redacted(source_url)} is empty.")
        with (
            unlocking_with(None),
            backend_class(target_url).building(target_url) as built_url,
            _said_where_it_stays(target_url, stays=built_url == target_url),
            progress(size_of(source)) as given,
        ):
            step = given or _ignore
            digest = _fill(source, built_url, step)
            with open_backend(built_url) as built:
                if _digest_of(built, step) != digest:
                    raise Damaged(
                        f"The copy at {redacted(target_url)} was read back and differs from the "
                        "original. Check that disk for errors."
                    )
                keeps_time = _is_same_time(source.last_change_at, built.last_change_at)
                copied = Copied(built.version, built.version_count, digest.hex(), keeps_time)
        interruption.finished()
        return copied


def _is_same_time(one: float | None, other: float | None) -> bool:
    """Whether two times are equal, to the precision of all file systems."""
    if one is None or other is None:
        return one is other
    return abs(one - other) < _EXACTNESS_S


@contextmanager
def _said_where_it_stays(url: str, *, stays: bool) -> Iterator[None]:
    """Adds to an error that the incomplete copy must not be mistaken for the backup."""
    try:
        yield
    except AlreadyExists:
        raise
    except BackupError as error:
        if not stays:
            raise
        said = "Stopped." if isinstance(error, Interrupted) else str(error)
        text = (
            f"{said} THE COPY AT {redacted(url)} IS INCOMPLETE: a node that is restored from it "
            "loses its funds. Remove it. The original backup is unchanged."
        )
        error.args = (text,)
        raise


def _fill(source: Backend, url: str, step: Step) -> bytes:
    """Makes a new backup from all changes of another one; returns their digest."""
    digest = hashlib.sha256()
    with read_ahead(source) as read:
        changes = _dated(read, source)
        first = next(changes)
        if first.snapshot is not None:
            create_backend(url, _noted(first, digest))
        else:
            create_backend(url, None)
        with open_backend(url, writable=True) as target:
            if first.snapshot is None:
                target.add_change(_noted(first, digest))
            step(first)
            for change in changes:
                target.add_change(_noted(change, digest))
                step(change)
    return digest.digest()


def _dated(changes: Iterator[Change], source: Backend) -> Iterator[Change]:
    """All changes; the last one has at least the time that the backup has as a whole."""
    head_ms = int((source.last_change_at or 0) * 1000)
    for number, change in enumerate(changes, 1):
        if number == source.version_count and not change.stored_ms:
            yield replace(change, stored_ms=head_ms)
        else:
            yield change


def _digest_of(backend: Backend, step: Step) -> bytes:
    digest = hashlib.sha256()
    for change in backend.stream_changes():
        noted = _noted(change, digest)
        for _ in noted.snapshot.chunks() if noted.snapshot is not None else ():
            pass
        step(change)
    return digest.digest()


class _NotedSnapshot:
    """A snapshot that updates a digest while it is read."""

    def __init__(self, change: Change, digest: hashlib._Hash) -> None:
        assert change.snapshot is not None
        self._snapshot = change.snapshot
        self._digest = digest
        self.size_bytes = change.snapshot.size_bytes

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes in order."""
        for chunk in self._snapshot.chunks():
            self._digest.update(chunk)
            yield chunk


def _noted(change: Change, digest: hashlib._Hash) -> Change:
    """The same change, added to the digest: a snapshot while it is read."""
    digest.update(f"{change.version} {change.kind.value} ".encode())
    if change.transaction is None:
        return replace(change, snapshot=_NotedSnapshot(change, digest))
    for statement in change.transaction:
        text = statement.encode("utf-8", "surrogateescape")
        digest.update(len(text).to_bytes(8, "big") + text)
    return change
