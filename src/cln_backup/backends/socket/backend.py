"""`socket:HOST:PORT`: a backup on a server, over protocol 1 or its extension.

Whatever is cut, request, write or answer: the next connection begins with the question where the
server stands. It stands before the change, and the change is sent again, or behind it, and nothing
is. The extension knows the two apart by the head's digest, protocol 1 by version and count.
"""

from __future__ import annotations

import contextlib
import math
import os
from typing import TYPE_CHECKING, ClassVar

from cln_backup.backends import redacted
from cln_backup.backends.contract import Backend, check_follows
from cln_backup.backends.socket.download import Download, PlainDownload
from cln_backup.backends.socket.link import Link
from cln_backup.backends.socket.session import ExtendedSession, Outgoing
from cln_backup.backends.socket.url import parse_socket_url
from cln_backup.model.change import Change, Head, Kind
from cln_backup.model.errors import (
    AlreadyExists,
    BadChange,
    Discontinuity,
    StorageError,
    WriterConflict,
)
from cln_backup.wire import packets as wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.contract import Staged, Statistics
    from cln_backup.backends.socket.session import Session
    from cln_backup.backends.socket.url import SocketUrl

OPEN_WRITER_S = 50.0
"""How long the first call of a node waits: other plugins give up some 120 s after its start."""

OPEN_READER_S = 15.0


class SocketBackend(Backend):
    """A backup on a server."""

    remote: ClassVar[bool] = True

    def __init__(self, url: str, parsed: SocketUrl, *, writable: bool) -> None:
        self.url = url
        self.notices = []
        self._url = parsed
        self._writable = writable
        self._finished = False
        self._learned = False
        role = "write" if writable else "read"
        self._link = Link(parsed, role, os.urandom(16).hex() if writable else "")
        self._standing = wire.Standing(0, 0, 0)
        self._extended = False

    @classmethod
    def create(cls, url: str, base: Change | None) -> None:
        """See `Backend.create`.

        A server makes the backup where it has none yet. One that is there and empty, as `init` on
        the server leaves it, is taken; servers that know protocol 1 only have no other.
        """
        parsed = parse_socket_url(url)
        outgoing = None if base is None else Outgoing(base)
        link = Link(parsed, "create", os.urandom(16).hex())

        def attempt(session: Session) -> bool:
            now = session.standing
            ours = outgoing is not None and outgoing.digest == now.digest
            if now.version_count and not ours:
                raise AlreadyExists(
                    f"The backup on {redacted(url)} is at version {now.version} already, and "
                    "is left as it is. If it is this node's, it can be used as it is; otherwise "
                    "have the server serve another one."
                )
            if not isinstance(session, ExtendedSession):
                return False
            if outgoing is None:
                session.create_empty()
            elif not ours:
                session.append(outgoing)
            return True

        try:
            done = link.until(min(parsed.deadline_s, OPEN_WRITER_S), attempt)
        finally:
            link.close()
        if not done and base is not None:
            with cls.open(url, writable=True) as backend:
                backend.add_change(base)

    @classmethod
    def open(cls, url: str, *, writable: bool) -> SocketBackend:
        """See `Backend.open`; `NotFound` and `Damaged` are what the server says of its backup.

        Raises:
            AccessDenied: server and client do not trust each other.
            Unreachable: there is no server.
        """
        backend = cls(url, parse_socket_url(url), writable=writable)
        limit_s = min(backend._url.deadline_s, OPEN_WRITER_S if writable else OPEN_READER_S)
        session = backend._link.until(limit_s, lambda session: session)
        backend._extended = session.extended
        backend.exclusive = not session.extended  # the community's server has one client at a time
        backend._stand(session.standing)
        return backend

    def _stand(self, standing: wire.Standing) -> None:
        self._standing = standing
        self.version = standing.version
        self.prev_version = standing.prev_version
        self.version_count = standing.version_count

    @property
    def head(self) -> Head | None:
        """See `Backend.head`.

        Protocol 1 does not tell what the head is. A transaction is one above the version before;
        `rewind` makes sure of it. Foreign keys count as not enforced until a change of this
        process says otherwise: an ON too much does no harm.
        """
        standing = self._standing
        if self._extended or self._learned:
            if standing.head is None:
                return None
            return Head(standing.version, standing.head, standing.foreign_keys)
        if standing.version == 0 and standing.version_count == 0:
            return None
        step = standing.version - standing.prev_version
        kind = {0: Kind.RIDER, 1: Kind.TRANSACTION}.get(step, Kind.SNAPSHOT)
        return Head(standing.version, kind, foreign_keys=False)

    @property
    def size_bytes(self) -> int:
        """See `Backend.size_bytes`; 0 where the server knows protocol 1 only.

        The answer to a change does not have it, so that no append looks at all files; it is asked
        for.

        Raises:
            Unreachable.
        """
        if self._extended and not self._standing.size_bytes:

            def attempt(session: Session) -> int:
                session.refresh()
                return session.standing.size_bytes

            size = self._link.until(self._limit_s(), attempt)
            self._standing = self._standing._replace(size_bytes=size)
        return self._standing.size_bytes

    @property
    def last_change_at(self) -> float | None:
        """See `Backend.last_change_at`."""
        changed_at_ms = self._standing.changed_at_ms
        return changed_at_ms / 1000 if changed_at_ms else None

    def _limit_s(self) -> float:
        if self.patience_s is None:
            return self._url.deadline_s
        return min(self._url.deadline_s, self.patience_s)

    def _require_writer(self) -> None:
        assert self._writable, "opened for reading"
        if self._finished:
            raise StorageError(
                "A change did not come through to the server before, and whether it is stored "
                "there is not known; nothing more is sent until the backup is opened anew."
            )

    @contextlib.contextmanager
    def _last_request(self) -> Iterator[None]:
        """Whatever stops in here makes it this writer's last, except what the server refused."""
        self._finished = True
        try:
            yield
        except (BadChange, Discontinuity):
            self._finished = False
            raise
        self._finished = False

    def claim(self, node_id: str) -> None:
        """See `Backend.claim`; the server remembers it, if it knows more than protocol 1."""
        self._require_writer()

        def attempt(session: Session) -> None:
            if isinstance(session, ExtendedSession):
                session.claim(node_id)

        self._link.until(self._limit_s(), attempt)

    def add_change(self, change: Change) -> None:
        """See `Backend.add_change`: on the server's stable storage when this returns.

        Raises:
            Unreachable: as `StorageError`; the connection was lost for longer than the deadline.
            WriterConflict: another process has taken this backup over.
        """
        self._require_writer()
        before = self._standing
        empty = self.head is None
        check_follows(change, self.version, empty=empty)
        outgoing = Outgoing(change)

        def attempt(session: Session) -> wire.Standing:
            if not self._has_landed(session, before, outgoing):
                session.append(outgoing)
            return session.standing

        with self._last_request():
            standing = self._link.until(self._limit_s(), attempt)
        self._learn(standing, before, change)

    def _has_landed(self, session: Session, before: wire.Standing, outgoing: Outgoing) -> bool:
        """Whether the server, asked anew, has the change already."""
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
        # Two equal riders have one digest. A compaction changes the count too, but not by one up.
        return now.version_count != before.version_count + 1

    def _taken_over(self, before: wire.Standing, now: wire.Standing) -> WriterConflict:
        return WriterConflict(
            f"The connection to {self._url.server} was lost with the backup at version "
            f"{before.version}, and it is back with the backup at {now.version}, which this "
            "process did not write. Another node or program writes to the same backup; find it "
            "before you start this node again."
        )

    def _learn(self, standing: wire.Standing, before: wire.Standing, change: Change) -> None:
        if not self._extended:
            # The one that knows what the head is.
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
        self._stand(standing)

    def rewind(self) -> None:
        """See `Backend.rewind`; the dropped change is set aside where the server's backup is."""
        self._require_writer()
        before = self._standing
        head = self.head
        if head is None:
            raise Discontinuity("There is no change that could be dropped; nothing was changed.")
        known = None if self._extended else self._require_transaction()
        to_version = before.prev_version

        def attempt(session: Session) -> wire.Standing:
            now = session.standing
            if self._is_same(now, before):
                session.drop(to_version, before.digest)
            elif now.version != to_version:
                raise self._taken_over(before, now)
            return session.standing

        with self._last_request():
            standing = self._link.until(self._limit_s(), attempt)
        self._learned = known is not None
        if known is None:
            self.notices.append(
                "The dropped change is kept on the server, whose log names the file."
            )
        else:
            standing = standing._replace(head=known.kind, foreign_keys=known.foreign_keys)
        self._stand(standing)

    def _require_transaction(self) -> Head | None:
        """Looks, where protocol 1 is spoken, what the head is before it is dropped.

        It must all be streamed for that; it happens only after a crash of the node. What stood
        before the head is returned where it was seen: the community's server appends behind what
        was dropped, and an ON rider that need not be there would then stand between the dropped
        transaction and the one that takes its place, where no reader can tell them apart.
        """
        from cln_backup.model.statements import foreign_keys_after

        kind = self._standing.head if self._learned else None
        head = before = None
        if not self._learned:
            foreign_keys = True
            for change in PlainDownload(self._link, self._limit_s(), 0, head=True).changes():
                before, kind = head, change.kind
                if kind is Kind.RIDER and change.transaction is not None:
                    foreign_keys = foreign_keys_after(change.transaction, foreign_keys)
                elif kind is Kind.SNAPSHOT:
                    foreign_keys = True
                head = Head(change.version, kind, foreign_keys)
        if kind is not Kind.TRANSACTION or self._standing.prev_version != self.version - 1:
            raise Discontinuity(
                f"The last change of the backup, at version {self.version}, is no transaction of "
                "the node, or was preceded by a dropped one, so it cannot be one that the node did "
                "not commit. Core Lightning seems to have lost some state (failed restore?). "
                "Nothing was dropped."
            )
        return before

    def stream_changes(self, start: int = 0, *, head: bool = True) -> Iterator[Change]:
        """See `Backend.stream_changes`. A lost connection is made anew, and the stream goes on.

        Raises:
            Unreachable: the connection was lost for longer than the deadline.
            StorageError: it was lost, and the backup is another since.
        """
        if not self._extended:
            yield from PlainDownload(self._link, self._limit_s(), start, head=head).changes()
            return
        if not self._writable:
            yield from Download(self._link, self._limit_s(), start, head=head).changes()
            return
        link = Link(self._url, "read", "")  # the writer's own must stay free
        try:
            yield from Download(link, self._limit_s(), start, head=head).changes()
        finally:
            link.close()

    def compact(self) -> Statistics | None:
        """See `Backend.compact`; the server does it."""
        session = self._link.until(self._limit_s(), lambda session: session)
        try:
            # A writer waits for its connection to come back no longer either.
            statistics = session.compact(self._url.deadline_s if self._writable else math.inf)
            session.refresh()
        except OSError as error:
            self._link.close()
            raise StorageError(
                "The connection was lost while the server compacted. It may have finished, or have "
                "failed: its log tells. The backup is whole either way."
            ) from error
        known = self._standing  # protocol 1 does not tell what the head is; it stays what it was
        standing = session.standing
        if not self._extended:
            standing = standing._replace(head=known.head, foreign_keys=known.foreign_keys)
        self._stand(standing)
        return statistics

    def stage(self, base: Change | None, *, foreign_keys: bool) -> Staged:
        """A server compacts by itself: see `compact`."""
        raise NotImplementedError

    def stage_more(self, staged: Staged) -> Staged:
        """A server compacts by itself: see `compact`."""
        raise NotImplementedError

    def replace(self, staged: Staged) -> None:
        """A server compacts by itself: see `compact`."""
        raise NotImplementedError

    def discard(self) -> None:
        """There is never a replacement to remove: see `compact`."""

    def close(self) -> None:
        """See `Backend.close`."""
        self._link.close()


def take_over(url: str) -> None:
    """Has the server refuse whoever writes to the backup now; the next writer may begin.

    Raises:
        AccessDenied, Unreachable, BadUrl.
    """
    link = Link(parse_socket_url(url), "takeover", os.urandom(16).hex())
    try:
        link.until(OPEN_READER_S, lambda session: session)
    finally:
        link.close()
