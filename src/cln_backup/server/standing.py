"""The state of a backup, as it goes over the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup.backends.contract import Writer
from cln_backup.formats import digests
from cln_backup.model.position import UNKNOWN
from cln_backup.wire import packets as wire

if TYPE_CHECKING:
    from cln_backup.backends.contract import Backend, Reader


def standing_of(
    backend: Backend, digest: bytes, epoch: int, *, size_bytes: int = 0
) -> wire.Standing:
    """The state of a backup, as it goes over the wire.

    The size is passed in by callers that need it, because it takes a look at each file.
    """
    standing, changed_at = backend.standing, backend.last_change.at
    head, position = standing.head, standing.position
    starts_over = not isinstance(backend, Writer) or backend.can_start_over
    return wire.Standing(
        standing.version,
        standing.prev_version,
        standing.version_count,
        None if head is None else head.kind,
        head is None or head.foreign_keys,
        size_bytes,
        0 if changed_at is None else int(changed_at * 1000),
        epoch,
        digest,
        wire.FEATURES if starts_over else wire.FEATURES & ~wire.CAN_START_OVER,
        position.changes,
        position.digest or UNKNOWN,
    )


def head_digest(reader: Reader) -> bytes:
    """The digest of the last change, which is read for this; zeros if there is none."""
    digest = digests.NO_DIGEST
    if reader.standing.head is not None:
        for change in reader.stream_changes(reader.version):
            digest = digests.digest_of_change(change)
    return digest
