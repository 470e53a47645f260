"""`socket:HOST:PORT`: a backup on a server, over protocol 1 or its extension."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from cln_backup.backends import redacted
from cln_backup.backends.events import ignore
from cln_backup.backends.place import Place
from cln_backup.backends.socket.link import Link
from cln_backup.backends.socket.reader import SocketReader
from cln_backup.backends.socket.session import ExtendedSession, Outgoing
from cln_backup.backends.socket.url import parse_socket_url
from cln_backup.backends.socket.writer import SocketWriter
from cln_backup.model.errors import AlreadyExists, BadPacket, Locked
from cln_backup.wire.packets import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cln_backup.backends.contract import Reader, Writer
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.inventory import Key
    from cln_backup.backends.objects.sealed import SealedPlace
    from cln_backup.backends.place import Concession
    from cln_backup.backends.secrets import Secret
    from cln_backup.backends.socket.session import Session
    from cln_backup.backends.ticket import Folded, Statistics
    from cln_backup.model.change import Change
    from cln_backup.model.position import Position

OPEN_WRITER_S = 50.0
"""How long the first call of a node waits: other plugins time out about 120 s after its start."""

OPEN_READER_S = 15.0


def socket_place(url: str) -> Place:
    """The place that a URL names: with a key, a sealed backup; otherwise one that may be."""
    if parse_socket_url(url).key_source is None:
        return SocketPlace(url)
    return _sealed(url)


def _sealed(url: str) -> SealedPlace:
    from cln_backup.backends.objects.sealed import SealedPlace

    return SealedPlace(url)


class SocketPlace(Place):
    """A server. Opening also raises `AccessDenied` and `Unreachable`.

    With a secret, what is opened is a sealed backup, as with a key in the URL.
    """

    can_encrypt = True

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.server = parse_socket_url(url)

    @property
    def concessions(self) -> frozenset[Concession]:
        """See `Place.concessions`."""
        return self.server.concessions

    def keys(self) -> list[Key]:
        """See `Place.keys`; the server is asked whether the backup is sealed."""
        from cln_backup.backends.objects.sealed import NotSealed

        if self.server.protocol == PROTOCOL:
            return []
        try:
            return _sealed(self.url).keys()
        except (NotSealed, BadPacket):  # the latter from an older release
            return []

    def add_key(self, added: Secret, label: str, *, secret: Secret | None = None) -> None:
        """See `Place.add_key`."""
        _sealed(self.url).add_key(added, label, secret=secret)

    def remove_key(self, label: str) -> None:
        """See `Place.remove_key`."""
        _sealed(self.url).remove_key(label)

    @contextlib.contextmanager
    def creating(
        self,
        base: Change | None = None,
        *,
        origin: Position | None = None,  # noqa: ARG002 - the protocol has no room for it
        secret: Secret | None = None,
        hidden: bool = False,  # noqa: ARG002 - a server has no place for what is unfinished
    ) -> Iterator[Place]:
        """See `Place.creating`.

        A server makes the backup if it has none yet, or uses an existing empty one, as `init` on
        the server makes it; servers that support protocol 1 only cannot make one.
        """
        if secret is not None:
            with _sealed(self.url).creating(base, secret=secret) as place:
                yield place
            return
        outgoing = None if base is None else Outgoing(base)
        link = Link(self.server, "create", os.urandom(16).hex(), ignore)

        def attempt(session: Session) -> bool:
            now = session.standing
            ours = outgoing is not None and outgoing.digest == now.digest
            if now.version_count and not ours:
                raise AlreadyExists(
                    f"The backup on {redacted(self.url)} is not empty: it is at version "
                    f"{now.version}. It was not changed. If it belongs to this node, you can use "
                    "it; otherwise configure another backup on the server."
                )
            if not isinstance(session, ExtendedSession):
                return False
            if outgoing is None:
                session.create_empty()
            elif not ours:
                session.append(outgoing)
            return True

        try:
            done = link.until(min(self.server.deadline_s, OPEN_WRITER_S), attempt)
        finally:
            link.close()
        if not done and base is not None:
            with self.open_writer() as writer:
                writer.add_change(base)
        yield self

    def open_reader(
        self,
        *,
        secret: Secret | None = None,
        on_event: OnEvent = ignore,
        timeout_s: float | None = None,
        accept_incomplete: bool = False,  # noqa: ARG002 - the server decides that
    ) -> Reader:
        """See `Place.open_reader`; `NotFound` and `Damaged` come from the server."""
        if secret is not None:
            return _sealed(self.url).open_reader(
                secret=secret, on_event=on_event, timeout_s=timeout_s
            )
        limit_s = OPEN_READER_S if timeout_s is None else min(OPEN_READER_S, timeout_s)
        with self._not_found_if_none():
            return SocketReader(self, on_event, limit_s)

    def open_writer(
        self,
        node_id: str | None = None,
        *,
        secret: Secret | None = None,
        on_event: OnEvent = ignore,
        timeout_s: float | None = None,
    ) -> Writer:
        """See `Place.open_writer`; `NotFound` and `Damaged` come from the server."""
        if secret is not None:
            return _sealed(self.url).open_writer(
                node_id, secret=secret, on_event=on_event, timeout_s=timeout_s
            )
        limit_s = OPEN_WRITER_S if timeout_s is None else min(OPEN_WRITER_S, timeout_s)
        with self._not_found_if_none():
            return super().open_writer(node_id, on_event=on_event, timeout_s=limit_s)

    @contextlib.contextmanager
    def _not_found_if_none(self) -> Iterator[None]:
        """Raises `NotFound` instead of `Locked` if a sealed backup was not made yet."""
        try:
            yield
        except Locked:
            _sealed(self.url).keys()
            raise

    def fence(
        self,
        node_id: str | None = None,
        *,
        secret: Secret | None = None,
        on_event: OnEvent = ignore,
    ) -> Writer:
        """See `Place.fence`: as `backup-cli takeover`, and then this one is the writer."""
        if secret is not None:
            return _sealed(self.url).fence(node_id, secret=secret, on_event=on_event)
        take_over(self.url)
        return self.open_writer(node_id, secret=secret, on_event=on_event)

    def _open_writer(
        self,
        secret: Secret | None,  # noqa: ARG002
        on_event: OnEvent,
        timeout_s: float | None,
    ) -> SocketWriter:
        return SocketWriter(self, on_event, timeout_s)

    def compact(
        self,
        fold: Callable[[Reader], Folded],
        *,
        if_it_pays: bool = False,
        secret: Secret | None = None,
        on_event: OnEvent = ignore,
    ) -> Statistics:
        """See `Place.compact`: the server does it, and a node may write meanwhile.

        The server decides whether it pays, unless the backup is sealed.
        """
        if secret is not None:
            return _sealed(self.url).compact(
                fold, if_it_pays=if_it_pays, secret=secret, on_event=on_event
            )
        with self.open_reader(on_event=on_event) as reader:
            done = reader.prepare_compaction(fold).done
            assert done is not None
            return done


def take_over(url: str) -> None:
    """Makes the server refuse the current writer of the backup; the next writer is accepted.

    Raises:
        AccessDenied, Unreachable, BadUrl.
    """
    link = Link(parse_socket_url(url), "takeover", os.urandom(16).hex(), ignore)
    try:
        link.until(OPEN_READER_S, lambda session: session)
    finally:
        link.close()
