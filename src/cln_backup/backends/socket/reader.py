"""Reads a backup on a server."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from cln_backup.backends.contract import LastChange, Proof, Reader, Standing
from cln_backup.backends.follows import SeenHeads, changes_after, numbered, position_is_gone
from cln_backup.backends.socket.download import Download, PlainDownload
from cln_backup.backends.socket.link import Link
from cln_backup.backends.socket.session import ExtendedSession
from cln_backup.backends.ticket import Ticket
from cln_backup.formats.digests import digest_of_change
from cln_backup.model.change import Head, Kind
from cln_backup.model.errors import StorageError
from cln_backup.model.position import UNKNOWN
from cln_backup.storage.waiting import wait_until
from cln_backup.wire import packets as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.follows import Numbered
    from cln_backup.backends.socket.place import SocketPlace
    from cln_backup.backends.socket.session import Session
    from cln_backup.backends.ticket import Folded, Statistics
    from cln_backup.model.change import Change
    from cln_backup.model.position import Position


def standing_of(standing: wire.Standing, *, head_is_known: bool) -> Standing:
    """The state of a server's backup."""
    position = standing.position
    prev_version, count = standing.prev_version, standing.version_count
    head = _head_of(standing) if head_is_known else _guessed_head(standing)
    droppable = head is not None and (prev_version > 0 or count == 1)
    return Standing(position, count, prev_version, head, droppable, standing.epoch)


def _head_of(standing: wire.Standing) -> Head | None:
    if standing.head is None:
        return None
    return Head(standing.version, standing.head, standing.foreign_keys)


def _guessed_head(standing: wire.Standing) -> Head | None:
    """The head, as far as it is known from protocol 1.

    A transaction raises the version by one; `rewind` checks it. Foreign keys count as not enforced
    until a change of this process says otherwise: an extra ON rider is harmless.
    """
    if standing.version == 0 and standing.version_count == 0:
        return None
    step = standing.version - standing.prev_version
    kind = {0: Kind.RIDER, 1: Kind.TRANSACTION}.get(step, Kind.SNAPSHOT)
    return Head(standing.version, kind, foreign_keys=False)


def measured_size(link: Link, limit_s: float, known: wire.Standing, *, extended: bool) -> int:
    """See `Backend.size_bytes`; 0 if the server supports protocol 1 only.

    The answer to a change does not have it, so that an append does not look at all files; it is
    requested.

    Raises:
        Unreachable.
    """

    def attempt(session: Session) -> int:
        session.refresh()
        return session.standing.size_bytes

    return known.size_bytes or (link.until(limit_s, attempt) if extended else 0)


def last_change_of(standing: wire.Standing) -> LastChange:
    """When the head was stored, according to the server."""
    changed_at_ms = standing.changed_at_ms
    return LastChange(changed_at_ms / 1000 if changed_at_ms else None, by_file=False)


def compact_there(link: Link, limit_s: float, compact_s: float) -> tuple[Statistics, wire.Standing]:
    """Makes the server compact the backup, within `compact_s`; returns its state after that."""
    session = link.until(limit_s, lambda session: session)
    try:
        statistics = session.compact(compact_s)
        session.refresh()
    except OSError as error:
        link.close()
        raise StorageError(
            "The connection was lost while the server compacted. The backup is complete in any "
            "case; the server's log says whether the compaction finished."
        ) from error
    return statistics, session.standing


class SocketReader(Reader):
    """A reader, which reconnects when its connection is lost."""

    def __init__(self, place: SocketPlace, on_event: OnEvent, timeout_s: float) -> None:
        """Opens the backup; see `Place.open_reader`."""
        self.place: SocketPlace = place
        self._deadline_s = place.server.deadline_s
        self._link = Link(place.server, "read", "", on_event)
        session = self._link.until(min(self._deadline_s, timeout_s), lambda session: session)
        self._extended = session.extended
        self._known = session.standing
        self._heads = SeenHeads()
        self._remember(self._known)

    @property
    def standing(self) -> Standing:
        """See `Backend.standing`."""
        return standing_of(self._known, head_is_known=self._extended)

    @property
    def size_bytes(self) -> int:
        """See `Backend.size_bytes`. Raises `Unreachable`."""
        size = measured_size(self._link, self._deadline_s, self._known, extended=self._extended)
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

    @property
    def proof(self) -> Proof | None:
        """See `Reader.proof`."""
        version, at_ms = self._known.proven_version, self._known.proven_at_ms
        return Proof(version, at_ms / 1000) if at_ms else None

    def stream_changes(
        self, start: int = 0, *, after: Position | None = None, head: bool = True
    ) -> Iterator[Change]:
        """See `Reader.stream_changes`. Reconnects if the connection is lost, and resumes.

        Raises:
            Unreachable: the connection was lost for longer than the deadline.
            StorageError: it was lost, and the backup has changed since.
        """
        if after is None:
            yield from self._download(start, head=head)
            return
        if after == self.standing.position and (not head or after.digest is not None):
            return
        if after.is_other_history(self.standing.position):
            raise position_is_gone(after)
        digest = self._heads.digest_at(after)
        asks = self._known.features & wire.CAN_STREAM_AFTER
        if asks and (digest is None or after.digest is not None):
            yield from self._download(after.version, head=head, after=after)
            return
        if digest is None:
            first = self._known.position.changes - self._known.version_count + 1
            found = numbered(self._download(0, head=head), first)
        else:
            found = self._numbered_after(after, digest, head=head)
        yield from changes_after(found, after, None)

    def _numbered_after(self, after: Position, digest: bytes, *, head: bool) -> Iterator[Numbered]:
        """The change at a position that was read before, and those after it.

        It is found by its digest among the changes of its version, so that not all must be sent.
        """
        number = 0
        for change in self._download(after.version, head=head):
            if number:
                number += 1
                yield number, change, UNKNOWN
            elif change.version == after.version and digest_of_change(change) == digest:
                number = after.changes
                yield number, change, UNKNOWN

    def wait_for_more(self, timeout_s: float) -> bool:
        """See `Reader.wait_for_more`. A server that cannot wait is asked after growing pauses."""
        until = time.monotonic() + timeout_s
        while self._known.features & wire.CAN_WAIT:
            left_s = max(0.0, until - time.monotonic())
            if self._goes_on(left_s):
                return True
            if not left_s:
                return False
        return wait_until(self._has_gone_on, until - time.monotonic(), None)

    def _goes_on(self, limit_s: float) -> bool:
        """Makes the server wait for a change of the backup, for at most `limit_s`."""
        before = self._sameness(self._known)

        def attempt(session: Session) -> wire.Standing:
            if isinstance(session, ExtendedSession) and self._sameness(session.standing) == before:
                session.wait(limit_s)
            return session.standing

        return self._takes_up(self._link.until(self._deadline_s, attempt))

    def _has_gone_on(self) -> bool:
        self._link.close()  # a reader sees the backup as it was when it connected
        return self._takes_up(self._link.until(self._deadline_s, lambda session: session).standing)

    def _takes_up(self, now: wire.Standing) -> bool:
        """Updates this reader's view; returns whether the backup has changed."""
        if self._sameness(now) == self._sameness(self._known):
            self._known = self._known._replace(features=now.features)
            return False
        self._remember(now)
        return True

    @staticmethod
    def _sameness(standing: wire.Standing) -> tuple[int, int, bytes]:
        return standing.version, standing.version_count, standing.digest

    def _remember(self, standing: wire.Standing) -> None:
        """Stores the state of the backup, and the digest of its head.

        Not a rider's: two of one version may be equal.
        """
        self._known = standing
        if self._extended and standing.head is Kind.TRANSACTION:
            self._heads.remember(self.standing.position, standing.digest)

    def _download(
        self, start: int, *, head: bool, after: Position | None = None
    ) -> Iterator[Change]:
        link, limit_s = self._link, self._deadline_s
        if not self._extended:
            return PlainDownload(link, limit_s, start, head=head).changes()
        return Download(link, limit_s, start, head=head, until=self._known, after=after).changes()

    def prepare_compaction(self, fold: Callable[[Reader], Folded]) -> Ticket:  # noqa: ARG002
        """See `Reader.prepare_compaction`; the server does everything."""
        done, self._known = compact_there(self._link, self._deadline_s, math.inf)
        return Ticket(done["before"], done["after"], done)

    def prepare_more(self, ticket: Ticket) -> Ticket:
        """See `Reader.prepare_more`. Everything is already done."""
        return ticket

    def discard(self, ticket: Ticket) -> None:
        """See `Reader.discard`. There is nothing to remove."""

    def close(self) -> None:
        """See `Backend.close`."""
        self._link.close()
