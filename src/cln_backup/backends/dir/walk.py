"""The newest segment, as far as a reader has read it: its next look continues there.

A segment is only appended to, and each record's seal covers everything before it. So a reader that
follows a writer need not read a change twice.
"""

from __future__ import annotations

import copy
import hashlib
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.backends.dir.tracker import Tracker
from cln_backup.formats import v2
from cln_backup.formats.v1 import unpack_transaction
from cln_backup.formats.v2_stream import Inflater
from cln_backup.model.change import Change
from cln_backup.storage.source import chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.dir.log import Segment
    from cln_backup.backends.follows import Numbered
    from cln_backup.formats.v2_stream import Record
    from cln_backup.storage.source import Source

_RECENT_BYTES: Final = 1 << 20


class _Recent(NamedTuple):
    """A transaction or rider that was read, not decoded yet."""

    number: int
    version: int
    content: bytes
    stored_ms: int
    digest: bytes

    def numbered(self) -> Numbered:
        transaction = unpack_transaction(self.content)
        change = Change(self.version, None, transaction, self.stored_ms)
        return self.number, change, self.digest


class Walk:
    """The reading of one segment.

    Attributes:
        decoder, inflater: of its records, after the last one that was read.
        tracker: the state after that record.
        end: the offset after it.
    """

    def __init__(self, segment: Segment) -> None:
        """Starts at the segment's first record."""
        state = segment.state
        self._number, self._seal = segment.number, segment.header.seal
        self.decoder = segment.decoder()
        self.inflater = Inflater()
        self.tracker = Tracker(state.ordinal, state.head, state.before, may_rewind=state.may_rewind)
        self.end = v2.HEADER_BYTES
        self._digest, self._digested_bytes = hashlib.sha256(), 0
        self._recent: deque[_Recent] = deque()
        self._recent_bytes = 0

    def is_of(self, segment: Segment) -> bool:
        """Whether this is the segment that is being read."""
        return (self._number, self._seal) == (segment.number, segment.header.seal)

    def passed(self, record: Record, content: bytes | None) -> None:
        """Remembers a record, which the tracker has; `content` is that of statements."""
        self.end = record.end_bytes
        if record.type is v2.Type.DROP:
            if self._recent:
                self._recent_bytes -= len(self._recent.pop().content)
        elif content is None:  # a snapshot
            self._recent.clear()
            self._recent_bytes = 0
        else:
            tracker = self.tracker
            self._recent.append(
                _Recent(tracker.ordinal, record.version, content, record.stored_ms, tracker.digest)
            )
            self._recent_bytes += len(content)
            while self._recent_bytes > _RECENT_BYTES:
                self._recent_bytes -= len(self._recent.popleft().content)

    def recent(self, number: int) -> Iterator[Numbered] | None:
        """The changes from this number on up to the head; `None` if they were not kept.

        The reader's next look does not change what this one returned.
        """
        if not self._recent or self._recent[0].number > number:
            return None
        kept = [recent for recent in self._recent if recent.number >= number]
        return (recent.numbered() for recent in kept)

    def tracker_now(self) -> Tracker:
        """A copy of the tracker, which the bytes after the end may still change."""
        return copy.copy(self.tracker)

    def digest(self, source: Source) -> bytes:
        """The SHA-256 of everything before the end."""
        for chunk in chunks(source, self.end, self._digested_bytes):
            self._digest.update(chunk)
        self._digested_bytes = self.end
        return self._digest.digest()


class Walks:
    """The last walk of a reader; forgotten after an error."""

    def __init__(self) -> None:
        self.last: Walk | None = None

    def of(self, segment: Segment) -> Walk:
        """The walk of a segment, which continues if it is the same one."""
        if self.last is None or not self.last.is_of(segment):
            self.last = Walk(segment)
        return self.last
