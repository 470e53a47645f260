"""Reads the changes of a `dir:` backup in order, without dropped ones."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends.dir.chain import check_tail_of_closed, pieces, read_piece
from cln_backup.backends.dir.log import open_segment
from cln_backup.backends.dir.snapshots import (
    StoredSnapshot,
    check_snapshot,
    last_seal,
    snapshot_state,
)
from cln_backup.backends.dir.store import damaged, list_files, snapshot_name
from cln_backup.formats import v2
from cln_backup.formats.v1 import unpack_transaction
from cln_backup.formats.v2_stream import Inflater, pack_transaction
from cln_backup.model.change import FOREIGN_KEYS_OFF, Change, Kind
from cln_backup.model.errors import Damaged
from cln_backup.model.position import EMPTY, UNKNOWN, after_snapshot, after_statements
from cln_backup.storage.source import chunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cln_backup.backends.dir.chain import Piece
    from cln_backup.backends.dir.log import LogEnd, Segment
    from cln_backup.backends.dir.store import Store
    from cln_backup.backends.follows import Numbered
    from cln_backup.formats.v2_stream import Record


class Base(NamedTuple):
    """A base that was read: the start of a generation of the history.

    Attributes:
        epoch: of the writer that made it.
    """

    generation: int
    name: str
    state: v2.BaseState
    epoch: int = 0

    def marks(self) -> tuple[v2.Mark | None, v2.Mark | None]:
        """The last two changes that the base replaces."""
        if not self.state.snapshot:
            return None, None
        version, stored_ms, digest = self.state.version, self.state.stored_ms, self.state.digest
        snapshot = v2.Mark(Kind.SNAPSHOT, True, version, v2.NOWHERE, stored_ms, UNKNOWN, digest)
        if self.state.foreign_keys:
            return snapshot, None
        return snapshot._replace(kind=Kind.RIDER, foreign_keys=False), snapshot

    def changes(self, store: Store) -> list[Change]:
        """The changes that the base replaces."""
        if not self.state.snapshot:
            return []
        version, size, stored_ms = self.state.version, self.state.size_bytes, self.state.stored_ms
        kind = v2.FileKind.BASE
        stored = StoredSnapshot(store, self.name, kind, self.generation, version, size, None)
        changes = [Change(version, stored, None, stored_ms)]
        if not self.state.foreign_keys:
            changes.append(Change(version, None, (FOREIGN_KEYS_OFF,), stored_ms))
        return changes

    def holds(self, mark: v2.Mark) -> bool:
        """Whether a change is folded into the base."""
        at, start = mark.at, self.state.start
        return (at.segment, at.offset_bytes) < (start.segment, start.offset_bytes)


class History(NamedTuple):
    """The history that a reader sees.

    Attributes:
        segments: the numbers of the segments, starting with the base's.
        end: the end of the log when it was opened.
    """

    store: Store
    base: Base
    segments: Sequence[int]
    end: LogEnd

    def changes(self, stop: v2.LogOffset | None) -> Iterator[Change]:
        """The changes that were not dropped; with `stop`, only those before that place.

        `NOWHERE` as a stop leaves out the last change of the base itself.
        """
        in_base = self.base.changes(self.store)
        yield from in_base[:-1]
        if stop == v2.NOWHERE:
            return
        # A change can be yielded only when the next record does not drop it.
        held = in_base[-1] if in_base else None
        for record, piece, inflater in self.records():
            if stop is not None and record.start[:2] == stop[:2]:
                break
            if record.type is v2.Type.DROP:
                held = None
                continue
            if held is not None:
                yield held
            held = self._change(record, piece, inflater)
        if held is not None:
            yield held

    def numbered(self, known: int) -> Iterator[Numbered]:
        """The changes that were not dropped, each with its number and the digest of the history.

        Starts at the change with the number `known` or at an earlier one, to avoid reading all.
        """
        held: Change | None = None
        segment = self._segment_with(known)
        if segment is None:
            in_base, state = self.base.changes(self.store), self.base.state
            number, before, digest = state.ordinal - len(in_base), UNKNOWN, state.digest
            for change in in_base:
                if held is not None:
                    yield number, held, UNKNOWN
                held, number = change, number + 1
            found = self.records()
        else:
            head, number = segment.state.head, segment.state.ordinal
            before, digest = (UNKNOWN, EMPTY) if head is None else (head.prev_digest, head.digest)
            found = self._records_from(segment.number)
        for record, piece, inflater in found:
            if record.type is v2.Type.DROP:
                held, number, before, digest = None, number - 1, UNKNOWN, before
                continue
            if held is not None:
                yield number, held, digest
            held, number = self._change(record, piece, inflater), number + 1
            before, digest = digest, self._digest_after(digest, record, piece, held)
        if held is not None:
            yield number, held, digest

    def _segment_with(self, number: int) -> Segment | None:
        """The segment that a change is in or after; `None` if that may be the base's."""
        at = len(self.segments) - 1
        while at >= 0 and self.segments[at] > self.base.state.start.segment:
            steps = 1
            if self.segments[at] <= self.end.segment:
                source, segment = open_segment(self.store, self.segments[at])
                source.close()
                if segment is not None and segment.state.ordinal < number:
                    return segment
                if segment is not None and self.store.one_record:
                    steps = segment.state.ordinal - number + 1
            at -= steps
        return None

    def _segments_from(self, first: int) -> Sequence[int]:
        return self.segments[bisect_left(self.segments, first) :]

    def _records_from(self, first: int) -> Iterator[tuple[Record, Piece, Inflater]]:
        """As `records`, from the start of a segment."""
        for piece in pieces(self.store, self._segments_from(first), self.end):
            inflater = Inflater()
            for record in read_piece(self.store, piece):
                yield record, piece, inflater

    def _digest_after(self, digest: bytes, record: Record, piece: Piece, change: Change) -> bytes:
        """The digest of the history after a change."""
        if change.transaction is not None:
            return after_statements(digest, change.version, pack_transaction(change.transaction))
        number, _, _ = v2.unpack_reference(record.payload)
        state = snapshot_state(self.store, piece.segment.number, number)
        return after_snapshot(digest, change.version, state.digest)

    def change_at(self, start: v2.LogOffset) -> Change:
        """The change whose record starts at a place in the log, even if it was dropped."""
        later = self._segments_from(start.segment)
        for piece in pieces(self.store, later, self.end):
            inflater = Inflater()
            for record in read_piece(self.store, piece):
                if record.start[:2] == start[:2]:
                    return self._change(record, piece, inflater)
                if record.type in v2.COMPRESSED:
                    self._inflate(record, piece, inflater)
        path = self.store.log_path(start.segment)
        return damaged(path, start.offset_bytes, 0, "the record that was found there is missing")

    def check(self) -> None:
        """Checks every byte from the base on, without decoding the changes.

        A segment that is followed by another is checked as a whole against the digest in the next
        one; if they differ, its records are read to find the place.

        Raises:
            Damaged, StorageError.
        """
        for change in self.base.changes(self.store):
            if change.snapshot is not None:
                for _ in change.snapshot.chunks():
                    pass
        if not self.base.state.snapshot:
            empty = StoredSnapshot(
                self.store, self.base.name, v2.FileKind.BASE, self.base.generation, 0, 0, None
            )
            for _ in empty.chunks():
                pass
        first = True
        good_before: dict[int, int] = {}
        for piece in pieces(self.store, self.segments, self.end):
            if first:
                self._check_first(piece)
                first = False
            head = piece.segment.state.head
            good = self.base.state.version if head is None else head.version
            good_before[piece.segment.number] = good
            if piece.digest is not None and _digest(piece) == piece.digest:
                check_tail_of_closed(self.store, piece, good)
                continue
            for _ in read_piece(self.store, piece):
                pass
            if piece.digest is not None:
                path = self.store.log_path(piece.segment.number)
                damaged(path, 0, good, "its digest does not match the one in the next segment")
        for segment, number in list_files(self.store.objects).snapshots:
            if segment >= self.base.state.start.segment:
                try:
                    check_snapshot(self.store, segment, number)
                except Damaged as error:
                    error.good_up_to(good_before.get(segment, 0))
                    raise

    def records(self) -> Iterator[tuple[Record, Piece, Inflater]]:
        """The records from the base on, each with its piece and its inflater.

        Each compressed one must be inflated, in order, before the next is asked for.
        """
        start = self.base.state.start
        found = start.offset_bytes == 0
        first = True
        for piece in pieces(self.store, self.segments, self.end):
            if first:
                self._check_first(piece)
                first = False
            inflater = Inflater()
            for record in read_piece(self.store, piece):
                if not found and record.start[:2] == start[:2]:
                    if record.start.seal != start.seal:
                        break
                    found = True
                if found:
                    yield record, piece, inflater
                elif record.type in v2.COMPRESSED:
                    self._inflate(record, piece, inflater)
            if not found:
                break
        if not found:
            version = self.base.state.version
            path = self.store.objects.where(self.base.name)
            damaged(path, 0, version, "the place where the log continues after it is missing")

    def _check_first(self, piece: Piece) -> None:
        state_of_base, state = self.base.state, piece.segment.state
        start = state_of_base.start
        if start.offset_bytes:
            good = piece.segment.number == start.segment
        else:
            good = state.prev_segment == 0 and state.prev_seal == last_seal(
                self.store, self.base.name
            )
        if not good:
            path = self.store.log_path(piece.segment.number)
            base = self.store.objects.where(self.base.name)
            what = f"it does not continue from {base}; a segment is missing"
            damaged(path, 0, state_of_base.version, what)

    def _change(self, record: Record, piece: Piece, inflater: Inflater) -> Change:
        if record.type in v2.COMPRESSED:
            transaction = unpack_transaction(self._inflate(record, piece, inflater))
            return Change(record.version, None, transaction, record.stored_ms)
        segment = piece.segment.number
        path = self.store.log_path(segment)
        try:
            if record.type is not v2.Type.SNAPSHOT:
                raise v2.Malformed(f"a record of type {record.type.name} in the log")
            number, size, seal = v2.unpack_reference(record.payload)
        except v2.Malformed as error:
            damaged(path, record.start.offset_bytes, record.version - 1, f"it has {error}")
        stored = StoredSnapshot(
            self.store,
            snapshot_name(segment, number),
            v2.FileKind.SNAPSHOT,
            number,
            record.version,
            size,
            seal,
        )
        return Change(record.version, stored, None, record.stored_ms)

    def _inflate(self, record: Record, piece: Piece, inflater: Inflater) -> bytes:
        try:
            return inflater.inflate(record.payload)
        except v2.Malformed as error:
            path = self.store.log_path(piece.segment.number)
            damaged(path, record.start.offset_bytes, record.version - 1, f"it has {error}")


def _digest(piece: Piece) -> bytes:
    digest = hashlib.sha256()
    for chunk in chunks(piece.source, piece.end_bytes):
        digest.update(chunk)
    return digest.digest()
