"""Copies a backup, between any two places and formats, and compares the two."""

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
"""FAT keeps every other second."""


class Copied(NamedTuple):
    """What was copied.

    Attributes:
        version: data version of both backups.
        version_count: number of changes.
        digest: SHA-256 over all changes, as both backups tell them, in hexadecimal.
        keeps_time: whether the copy says the same of when the last change was stored.
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

    Each change keeps the time at which it was stored, where both formats have room for it; the
    last one also where one is `file:`, whose time is then the file's. What a node's start makes of
    a loss of power depends on that. A server takes the time of the copy.

    The copy gets its name when it was read back: before, or where this fails in the middle, there
    is nothing that could be taken for a backup, which would be an older one. Only a server has no
    place for what is unfinished; there it must be removed by hand. The source is as it was.

    `progress` is told how large the backup is; what it gives is called after each change that was
    written, and after each that was read back.

    Raises:
        AlreadyExists: there is something at the target, or it is inside a backup; nothing was made.
        Damaged: the source cannot be read to its end, or the copy is not the same.
        BadChange: the target's format cannot hold a change.
        BackupError: as the two backends have it.
    """
    require_outside_backups(target_url)
    with interruption.deferred(), open_backend(source_url) as source:
        if source.head is None:
            raise NotFound(f"The backup {redacted(source_url)} is empty; there is nothing to copy.")
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
                        f"Read back, the copy to {redacted(target_url)} is not what was copied. "
                        "Look for faults of that disk."
                    )
                keeps_time = _is_same_time(source.last_change_at, built.last_change_at)
                copied = Copied(built.version, built.version_count, digest.hex(), keeps_time)
        interruption.finished()
        return copied


def _is_same_time(one: float | None, other: float | None) -> bool:
    """Whether two times are one, as exactly as all file systems have it."""
    if one is None or other is None:
        return one is other
    return abs(one - other) < _EXACTNESS_S


@contextmanager
def _said_where_it_stays(url: str, *, stays: bool) -> Iterator[None]:
    """Adds to an error that what was copied so far must not be taken for the backup."""
    try:
        yield
    except AlreadyExists:
        raise
    except BackupError as error:
        if not stays:
            raise
        said = "Stopped." if isinstance(error, Interrupted) else str(error)
        text = (
            f"{said} THE COPY AT {redacted(url)} IS NOT WHOLE: a node that is restored from it "
            "loses its funds. Remove it. The backup that was copied is as it was."
        )
        error.args = (text,)
        raise


def _fill(source: Backend, url: str, step: Step) -> bytes:
    """Makes a new backup of all changes of another one; returns their digest."""
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
    """A snapshot that goes into a digest as it is read."""

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
    """The same change, which goes into the digest: a snapshot when it is read."""
    digest.update(f"{change.version} {change.kind.value} ".encode())
    if change.transaction is None:
        return replace(change, snapshot=_NotedSnapshot(change, digest))
    for statement in change.transaction:
        text = statement.encode("utf-8", "surrogateescape")
        digest.update(len(text).to_bytes(8, "big") + text)
    return change
