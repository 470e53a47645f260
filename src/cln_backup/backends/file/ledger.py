"""The state of a `file:` backup as one frozen value, which each change replaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends.contract import Standing
from cln_backup.formats import v1
from cln_backup.model.change import Head
from cln_backup.model.position import Position

if TYPE_CHECKING:
    from cln_backup.backends.file.entries import Entry
    from cln_backup.backends.file.scan import Layout


class Ledger(NamedTuple):
    """The valid contents of a file; the header and the standing are made from it.

    Attributes:
        head: the last entry; `None` in an empty backup.
        before: the entry before it.
        end_bytes: offset of the next entry.
        version_count: number of entries.
        droppable: whether the head may be dropped.
    """

    head: Entry | None
    before: Entry | None
    end_bytes: int
    version_count: int
    droppable: bool

    @property
    def version(self) -> int:
        """Data version of the head; 0 in an empty backup."""
        return 0 if self.head is None else self.head.version

    @property
    def prev_version(self) -> int:
        """The data version that a rewind goes back to; 0 if there is none."""
        return self.before.version if self.droppable and self.before is not None else 0

    def with_entry(self, entry: Entry, end_bytes: int) -> Ledger:
        """The ledger with one more entry, after which the file ends at `end_bytes`."""
        return Ledger(entry, self.head, end_bytes, self.version_count + 1, True)

    def without_head(self) -> Ledger:
        """The ledger without the head."""
        assert self.head is not None
        count = self.version_count - 1
        return Ledger(self.before, None, self.head.offset_bytes, count, droppable=False)

    def moved(self, shift_bytes: int, folded: int) -> Ledger:
        """The ledger of a compacted file; `before` stays the same.

        Args:
            shift_bytes: by how much later (negative: earlier) the head is there.
            folded: the number of entries that the file has less.
        """
        assert self.head is not None
        return self._replace(
            head=self.head._replace(offset_bytes=self.head.offset_bytes + shift_bytes),
            end_bytes=self.end_bytes + shift_bytes,
            version_count=self.version_count - folded,
        )

    def header(self) -> v1.Header:
        """The file's header; the fields for a rewind are 0 if there is none."""
        head, before, end_bytes, count, droppable = self
        if head is None:
            return v1.Header(0, end_bytes, 0, 0, count)
        if not droppable:
            return v1.Header(head.version, end_bytes, 0, 0, count)
        prev_version = 0 if before is None else before.version
        return v1.Header(head.version, end_bytes, prev_version, head.offset_bytes, count)

    def standing(self) -> Standing:
        """The state of the backup; format 1 has no digest and no epoch."""
        head = self.head
        return Standing(
            Position(self.version, self.version_count, None),
            self.version_count,
            self.prev_version,
            None if head is None else Head(head.version, head.kind, head.foreign_keys),
            head is not None and self.droppable,
            epoch=0,
        )


def ledger_of(layout: Layout) -> Ledger:
    """The ledger of a scanned file."""
    return Ledger(
        layout.head,
        layout.before,
        layout.end_bytes,
        layout.version_count,
        layout.head_may_be_dropped,
    )
