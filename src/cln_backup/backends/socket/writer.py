"""Writes to a backup on a server, over protocol 1 or its extension.

Whether the request, the write or the answer was lost: the next connection starts by asking for the
state of the server's backup. If the change is not in it, it is sent again; if it is, nothing is
sent. The extension tells the two cases apart by the head's digest, protocol 1 by version and count.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from cln_backup.backends.contract import Writer
from cln_backup.backends.events import Event, Noticed
from cln_backup.backends.follows import check_follows
from cln_backup.backends.socket.download import PlainDownload
from cln_backup.backends.socket.link import Link
from cln_backup.backends.socket.reader import (
    compact_there,
    last_change_of,
    measured_size,
    standing_of,
)
from cln_backup.backends.socket.session import ExtendedSession, Outgoing
from cln_backup.backends.ticket import MoreNeeded
from cln_backup.model.change import Head, Kind
from cln_backup.model.errors import BadChange, Discontinuity, StorageError, WriterConflict
from cln_backup.wire import packets as wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.contract import LastChange, Standing
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.socket.place import SocketPlace
    from cln_backup.backends.socket.session import Session
    from cln_backup.backends.ticket import Statistics, Ticket
    from cln_backup.model.change import Change


class SocketWriter(Writer):
    """A writer, which reconnects when its connection is lost."""

    def __init__(self, place: SocketPlace, on_event: OnEvent, timeout_s: float | None) -> None:
        """Opens the backup; see `Place.open_writer`."""
        self.place: SocketPlace = place
        self._on_event = on_event
        self._finished = False
        self._learned = False
        self._link = Link(place.server, "write", os.urandom(16).hex(), on_event)
        session = self._link.until(self._limit_s(timeout_s), lambda session: session)
        self._extended = session.extended
        self._known = session.standing

    def _limit_s(self, timeout_s: float | None) -> float:
        deadline_s = self.place.server.deadline_s
        return deadline_s if timeout_s is None else min(deadline_s, timeout_s)

    @property
    def standing(self) -> Standing:
        """See `Backend.standing`."""
        return standing_of(self._known, head_is_known=self._extended or self._learned)

    @property
    def version(self) -> int:
        """See `Backend.version`."""
        return self._known.version

    @property
    def size_bytes(self) -> int:
        """See `Backend.size_bytes`. Raises `Unreachable`."""
        limit_s = self._limit_s(None)
        size = measured_size(self._link, limit_s, self._known, extended=self._extended)
        self._known = self._known._replace(size_bytes=size)
        return size

    @property
    def last_change(self) -> LastChange:
        """See `Backend.last_change`."""
        return last_change_of(self._known)

    @property
    def can_be_followed(self) -> bool:
        """See `Backend.can_be_followed`."""
        return bool(self._known.features & wire.CAN_STREAM_AFTER)

    def _require_writer(self) -> None:
        if self._finished:
            raise StorageError(
                "A change did not reach the server before, or its answer was lost, so it is "
                "unknown whether it is stored. Nothing more is sent until the backup is opened "
                "again."
            )

    @contextlib.contextmanager
    def _last_request(self) -> Iterator[None]:
        """Any error inside makes this the writer's last request, except a refusal of the server."""
        self._finished = True
        try:
            yield
        except (BadChange, Discontinuity):
            self._finished = False
            raise
        self._finished = False

    def claim(self, node_id: str, timeout_s: float | None = None) -> None:
        """See `Writer.claim`; the server records it, if it supports the extension."""
        self._require_writer()

        def attempt(session: Session) -> None:
            if isinstance(session, ExtendedSession):
                session.claim(node_id)

        self._link.until(self._limit_s(timeout_s), attempt)

    def store_change(self, change: Change, timeout_s: float | None = None) -> None:
        """See `Writer.store_change`: on the server's stable storage when this returns.

        Raises:
            Unreachable: as `StorageError`; the connection was lost for longer than the deadline.
            WriterConflict: another process has taken this backup over.
        """
        self._require_writer()
        before = self._known
        check_follows(change, before.version, empty=self._is_empty())
        outgoing = Outgoing(change)

        def attempt(session: Session) -> wire.Standing:
            if not self._has_landed(session, before, outgoing):
                session.append(outgoing)
            return session.standing

        with self._last_request():
            standing = self._link.until(self._limit_s(timeout_s), attempt)
        self._learn(standing, before, change)

    def _is_empty(self) -> bool:
        known = self._known
        if self._extended or self._learned:
            return known.head is None
        return known.version == 0 and known.version_count == 0

    def _has_landed(self, session: Session, before: wire.Standing, outgoing: Outgoing) -> bool:
        """Whether the server, asked again, already has the change."""
        now = session.standing
        if self._is_same(now, before):
            return False
        if now.version == outgoing.version:
            if session.extended and now.digest == outgoing.digest:
                return True
            if not session.extended and now.version_count == before.version_count + 1:
                return True
        raise self._taken_over(before, now)

    def _is_same(self, now: wire.Standing, before: wire.Standing) -> bool:
        if now.version != before.version:
            return False
        if self._extended and now.digest != before.digest:
            return False
        # Two equal riders have one digest. A compaction changes the count too, but not by plus one.
        return now.version_count != before.version_count + 1

    def _taken_over(self, before: wire.Standing, now: wire.Standing) -> WriterConflict:
        return WriterConflict(
            f"The connection to {self.place.server.server} was lost with the backup at version "
            f"{before.version}, and it is back with the backup at {now.version}, which this "
            "process did not write. Another node or program writes to the same backup; find it "
            "before you start this node again."
        )

    def _learn(self, standing: wire.Standing, before: wire.Standing, change: Change) -> None:
        if not self._extended:
            # The state with the head.
            from cln_backup.model.statements import foreign_keys_after

            foreign_keys = change.transaction is None or (
                foreign_keys_after(change.transaction, before.foreign_keys or not self._learned)
                if change.kind is Kind.RIDER
                else (before.foreign_keys or not self._learned)
            )
            standing = wire.Standing(
                change.version,
                before.version,
                before.version_count + 1,
                change.kind,
                foreign_keys,
            )
            self._learned = True
        self._known = standing

    def rewind(self, timeout_s: float | None = None) -> None:
        """See `Writer.rewind`; the dropped change is set aside beside the server's backup."""
        self._require_writer()
        before = self._known
        if self._is_empty():
            raise Discontinuity("There is no change to drop; nothing was changed.")
        known = None if self._extended else self._require_transaction(timeout_s)
        to_version = before.prev_version

        def attempt(session: Session) -> wire.Standing:
            now = session.standing
            if self._is_same(now, before):
                session.drop(to_version, before.digest)
            elif now.version != to_version:
                raise self._taken_over(before, now)
            return session.standing

        with self._last_request():
            standing = self._link.until(self._limit_s(timeout_s), attempt)
        self._learned = known is not None
        if known is None:
            text = "The dropped change is kept on the server, whose log names the file."
            self._on_event(Event(Noticed.KEPT, text))
        else:
            standing = standing._replace(head=known.kind, foreign_keys=known.foreign_keys)
        self._known = standing

    def _require_transaction(self, timeout_s: float | None) -> Head | None:
        """With protocol 1, finds out the kind of the head before it is dropped.

        All changes are streamed for that, which happens only after a crash of the node. The change
        before the head is returned if it was seen: the community's server appends after the
        dropped change, and an unnecessary ON rider would then be between the dropped transaction
        and its replacement, so that no reader could tell them apart.
        """
        from cln_backup.model.statements import foreign_keys_after

        kind = self._known.head if self._learned else None
        head = before = None
        if not self._learned:
            foreign_keys = True
            download = PlainDownload(self._link, self._limit_s(timeout_s), 0, head=True)
            for change in download.changes():
                before, kind = head, change.kind
                if kind is Kind.RIDER and change.transaction is not None:
                    foreign_keys = foreign_keys_after(change.transaction, foreign_keys)
                elif kind is Kind.SNAPSHOT:
                    foreign_keys = True
                head = Head(change.version, kind, foreign_keys)
        if kind is not Kind.TRANSACTION or self._known.prev_version != self.version - 1:
            raise Discontinuity(
                "Core Lightning seems to have lost some state (failed restore?). Nothing was "
                f"dropped: the last change of the backup, at version {self.version}, is not a "
                "transaction of the node, or follows a dropped one, so the node has committed it."
            )
        return before

    @property
    def can_start_over(self) -> bool:
        """See `Writer.can_start_over`; older servers cannot."""
        return bool(self._known.features & wire.CAN_START_OVER)

    def start_over(self, change: Change, timeout_s: float | None = None) -> str:
        """See `Writer.start_over`; the server's log says where the earlier history is."""
        self._require_writer()
        if not self.can_start_over:
            return super().start_over(change, timeout_s)
        before, outgoing = self._known, Outgoing(change)

        def attempt(session: Session) -> wire.Standing:
            now = session.standing
            assert isinstance(session, ExtendedSession)
            if self._is_same(now, before):
                session.append(outgoing, replaces=before.digest)
            elif now.digest != outgoing.digest or now.version_count != 1:
                raise self._taken_over(before, now)
            return session.standing

        with self._last_request():
            self._known = self._link.until(self._limit_s(timeout_s), attempt)
        return "its storage on the server, whose log has the path"

    def take_over(
        self, ticket: Ticket | None, timeout_s: float | None = None
    ) -> Statistics | MoreNeeded:
        """See `Writer.take_over`; the server has done everything when there is a ticket.

        The community's server has one client at a time: no other process could ask it.
        """
        if ticket is not None:
            assert ticket.done is not None
            return ticket.done
        if self._extended:
            return MoreNeeded.PREPARE
        text = (
            "The backup's server serves one connection at a time: if the node writes to "
            "its database now, it waits until the server has compacted."
        )
        self._on_event(Event(Noticed.BUSY, text))
        # Waits for the connection no longer than any other call.
        limit_s = self._limit_s(timeout_s)
        done, standing = compact_there(self._link, limit_s, self._limit_s(None))
        # Protocol 1 does not send the head; it stays the same.
        known = self._known
        self._known = standing._replace(head=known.head, foreign_keys=known.foreign_keys)
        return done

    def discard(self) -> None:
        """See `Writer.discard`. There is nothing to remove."""

    def close(self) -> None:
        """See `Backend.close`."""
        self._link.close()
