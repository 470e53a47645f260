"""Copies a backup between any two places and formats, and compares the two."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from cln_backup.backends import place_at, redacted
from cln_backup.backends.events import ignore
from cln_backup.backends.ticket import size_of
from cln_backup.model.errors import AlreadyExists, BackupError, Damaged, Interrupted, NotFound
from cln_backup.replay.ahead import read_ahead
from cln_backup.storage import interruption
from cln_backup.storage.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cln_backup.backends.contract import Reader
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.place import Place
    from cln_backup.backends.secrets import Secret
    from cln_backup.backends.ticket import Size
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
        has_node_files: whether it has the node's small files; `None` if the source has none.
    """

    version: int
    version_count: int
    digest: str
    keeps_time: bool
    has_node_files: bool | None


Step: TypeAlias = "Callable[[Change], None]"


def _in_silence(_of: Size) -> AbstractContextManager[Step | None]:
    return nullcontext()


def _ignore(_change: Change) -> None:
    pass


def copy(
    source_url: str,
    target_url: str,
    progress: Callable[[Size], AbstractContextManager[Step | None]] = _in_silence,
    *,
    secret: Secret | None = None,
    on_event: OnEvent = ignore,
) -> Copied:
    """Copies every change, then reads the copy back and compares.

    Each change keeps the time at which it was stored, if both formats store times; the last one
    also if one is `file:`, which has only the file's time. A node's start after a loss of power
    depends on it. A server stores the time of the copy.

    The copy gets its name after it was read back: before, or if the copy fails, there is nothing
    that could be mistaken for a backup, which would be an older one. Only a server cannot hide an
    unfinished copy; there it must be removed by hand. The source is unchanged.

    `secret` unlocks the source; the URL of the copy names the secret of the copy.

    `progress` gets the size of the backup; its result is called after each change that was
    written, and after each that was read back.

    Raises:
        AlreadyExists: the target exists, or is inside a backup; nothing was made.
        Damaged: the source cannot be read to its end, or the copy differs.
        BadChange: the target's format cannot store a change.
        BackupError: as the two backends raise.
    """
    target = place_at(target_url)
    with (
        interruption.deferred(),
        place_at(source_url).open_reader(secret=secret, on_event=on_event) as source,
    ):
        if source.standing.head is None:
            raise NotFound(f"Nothing to copy: the backup {redacted(source_url)} is empty.")
        with (
            _said_where_it_stays(target_url, stays=not target.removes_unfinished),
            progress(size_of(source)) as given,
        ):
            copied = _copy(source, target, given or _ignore, on_event)
        interruption.finished()
        return copied


def _copy(source: Reader, target: Place, step: Step, on_event: OnEvent) -> Copied:
    with read_ahead(source) as read:
        changes = _dated(read, source)
        if source.place.storage_dir is None:
            changes = _spooled(changes)
        return _filled(source, changes, target, step, on_event)


def _spooled(changes: Iterator[Change]) -> Iterator[Change]:
    """The changes of a server, whose snapshots can be read once, and a dir: reads them twice."""
    for change in changes:
        if change.snapshot is None:
            yield change
            continue
        with Spool() as spool:
            for chunk in change.snapshot.chunks():
                spool.write(chunk)
            yield replace(change, snapshot=spool)


def _filled(
    source: Reader, changes: Iterator[Change], target: Place, step: Step, on_event: OnEvent
) -> Copied:
    digest = hashlib.sha256()
    first = next(changes)
    base = None if first.snapshot is None else _noted(first, digest)
    with target.creating(base, origin=source.standing.origin, hidden=True) as place:
        if base is None:
            changes = chain([first], changes)
        else:
            step(first)
        _fill(place, changes, digest, step)
        with place.open_reader(on_event=on_event) as built:
            if _digest_of(built, step) != digest.digest():
                raise Damaged(
                    f"The copy at {redacted(target.url)} was read back and differs from the "
                    "original. Check that disk for errors."
                )
            keeps_time = _is_same_time(source.last_change.at, built.last_change.at)
            standing = built.standing
            return Copied(
                standing.version,
                standing.version_count,
                digest.hexdigest(),
                keeps_time,
                _copy_node_files(source, built),
            )


def _copy_node_files(source: Reader, built: Reader) -> bool | None:
    """Copies the newest set of the node's files, but never from an encrypted backup to a plain one.

    Returns whether it did; `None` if there are none.
    """
    kept = source.kept_files
    try:
        newest = None if kept is None else kept.newest()
    except Damaged:  # the history is not
        return False
    if kept is None or newest is None:
        return None
    target = built.kept_files
    if target is None or (kept.is_encrypted and not target.is_encrypted):
        return False
    target.put(newest.files)
    return True


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


def _fill(place: Place, changes: Iterator[Change], digest: hashlib._Hash, step: Step) -> None:
    with place.open_writer() as writer:
        for change in changes:
            writer.add_change(_noted(change, digest))
            step(change)


def _dated(changes: Iterator[Change], source: Reader) -> Iterator[Change]:
    """All changes; the last one has at least the time of the backup as a whole."""
    count = source.standing.version_count
    head_ms = int((source.last_change.at or 0) * 1000)
    for number, change in enumerate(changes, 1):
        if number == count and not change.stored_ms:
            yield replace(change, stored_ms=head_ms)
        else:
            yield change


def _digest_of(reader: Reader, step: Step) -> bytes:
    digest = hashlib.sha256()
    for change in reader.stream_changes():
        noted = _noted(change, digest)
        for _ in noted.snapshot.chunks() if noted.snapshot is not None else ():
            pass
        step(change)
    return digest.digest()


class _NotedSnapshot:
    """A snapshot that updates a digest once it was read, however often it is read."""

    def __init__(self, change: Change, digest: hashlib._Hash) -> None:
        assert change.snapshot is not None
        self._snapshot = change.snapshot
        self._digest: hashlib._Hash | None = digest
        self.size_bytes = change.snapshot.size_bytes

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes in order."""
        found = hashlib.sha256()
        for chunk in self._snapshot.chunks():
            found.update(chunk)
            yield chunk
        if self._digest is not None:
            self._digest.update(found.digest())
            self._digest = None


def _noted(change: Change, digest: hashlib._Hash) -> Change:
    """The same change, added to the digest: a snapshot while it is read."""
    digest.update(f"{change.version} {change.kind.value} ".encode())
    if change.transaction is None:
        return replace(change, snapshot=_NotedSnapshot(change, digest))
    for statement in change.transaction:
        text = statement.encode("utf-8", "surrogateescape")
        digest.update(len(text).to_bytes(8, "big") + text)
    return change
