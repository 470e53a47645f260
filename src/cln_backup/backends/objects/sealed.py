"""A sealed backup on a server: objects that the server stores and cannot read."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Final

from cln_backup.backends import redacted
from cln_backup.backends.events import Event, Noticed, ignore
from cln_backup.backends.objects.place import ObjectsAt, ObjectsPlace
from cln_backup.backends.socket.link import Link
from cln_backup.backends.socket.url import parse_socket_url
from cln_backup.model.errors import BadUrl, Damaged
from cln_backup.storage.bucket import Bucket, Listed
from cln_backup.wire import object_packets as objects
from cln_backup.wire.packets import IS_SEALED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.place import Concession, Place
    from cln_backup.backends.secrets import Secret
    from cln_backup.backends.socket.session import Session
    from cln_backup.backends.socket.url import SocketUrl
    from cln_backup.model.change import Change
    from cln_backup.model.position import Position
    from cln_backup.storage.bucket import Found

_CONNECTIONS: Final = 8
"""Requests at the same time; the others of this process wait."""

_LEAST_S: Final = 0.5
_NEARLY_FULL: Final = 0.9


class NotSealed(Damaged):
    """The server has no sealed backup for this node, but one that it can read, or none."""

    def __init__(self, url: SocketUrl) -> None:
        super().__init__(
            f"The backup on the server {url.server} is not encrypted, but a key was given for it. "
            "Your backup may have been replaced by another one. If you know that it is not "
            "encrypted, leave out the key."
        )


class ServerBucket(Bucket):
    """The objects of one node on a server."""

    def __init__(self, url: SocketUrl, limit_s: float, on_event: OnEvent) -> None:
        super().__init__(f"socket:{url.server}", limit_s)
        self._url = url
        self._on_event = on_event
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        self._idle: list[Link] = []
        self._warned = self._closed = False

    @contextlib.contextmanager
    def _link(self) -> Iterator[Link]:
        with self._free:
            try:
                link = self._idle.pop()
            except IndexError:
                name = os.urandom(16).hex()
                link = Link(self._url, objects.ROLE, name, self._on_event)
            try:
                yield link
            except BaseException:
                link.close()
                raise
            self._idle.append(link)
            if self._closed:  # meanwhile, by another thread
                self._close_idle()

    def _ask(self, packet_type: int, payload: bytes, answer_type: int, limit_bytes: int) -> bytes:
        def attempt(session: Session) -> bytes:
            if not session.standing.features & IS_SEALED:
                raise NotSealed(self._url)
            return session.ask(packet_type, payload, answer_type, limit_bytes)

        limit_s = max(_LEAST_S, self._limit_at() - time.monotonic())
        with self._link() as link:
            return link.until(limit_s, attempt)

    def put_new(self, key: str, content: bytes) -> bool:
        """See `Bucket.put_new`. The server compares, if there is an object with the key."""
        answer = self._ask(objects.PUT, objects.pack_put(key, content), objects.STORED, 64)
        stored = objects.unpack_stored(answer)
        self._look_at_quota(stored)
        return stored.is_ours

    def _look_at_quota(self, stored: objects.Stored) -> None:
        if not stored.quota_bytes or self._warned:
            return
        if stored.used_bytes >= _NEARLY_FULL * stored.quota_bytes:
            self._warned = True
            self._on_event(
                Event(
                    Noticed.WARNED,
                    f"The quota on the server {self._url.server} is nearly used up: "
                    f"{stored.used_bytes} of {stored.quota_bytes} bytes. When it is full, the "
                    "node is stopped. Compact the backup, or ask the server's operator for more.",
                )
            )

    def read(self, key: str, offset_bytes: int, length_bytes: int) -> Found | None:
        """See `Bucket.read`."""
        wanted = objects.pack_get(key, offset_bytes, length_bytes)
        answer = self._ask(objects.GET, wanted, objects.OBJECT, objects.MAX_OBJECT_BYTES)
        return objects.unpack_object(answer)

    def status(self, key: str) -> Listed | None:
        """See `Bucket.status`."""
        found = self.read(key, 0, 0)
        return None if found is None else Listed(key, found.size_bytes, found.stored_at)

    def list(self, prefix: str = "") -> Sequence[Listed]:
        """See `Bucket.list`."""
        found: list[Listed] = []
        more = True
        while more:
            wanted = objects.pack_list(prefix, found[-1].key if found else "")
            answer = self._ask(objects.LIST, wanted, objects.LISTING, objects.MAX_LISTING_BYTES)
            some, more = objects.unpack_listing(answer)
            if more and (not some or (found and some[-1].key <= found[-1].key)):
                raise Damaged(f"The listing of {self.where} does not end.")
            found += some
        return found

    def delete(self, keys: Sequence[str]) -> None:
        """See `Bucket.delete`. A server may retain them, where only its operator finds them."""
        for start in range(0, len(keys), objects.MAX_LISTED):
            some = objects.pack_delete(list(keys[start : start + objects.MAX_LISTED]))
            self._ask(objects.DELETE, some, objects.STORED, 64)

    def close(self) -> None:
        """See `Bucket.close`. A connection that another thread uses is closed after its request."""
        self._closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        with contextlib.suppress(IndexError):  # two threads may do this
            while True:
                self._idle.pop().close()


class SealedPlace(ObjectsPlace):
    """One node's objects on a server."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._server = server = parse_socket_url(url)
        node = f"?node={server.node}" if server.node else ""
        path = f"socket:{server.server}{node}"
        self.at = ObjectsAt(
            path, path, server.key_source, server.keep, server.keep_days, server.deadline_s
        )

    @property
    def concessions(self) -> frozenset[Concession]:
        """See `Place.concessions`."""
        return self._server.concessions

    def bucket(self, limit_s: float, on_event: OnEvent = ignore) -> Bucket:
        """See `ObjectsPlace.bucket`."""
        return ServerBucket(self._server, min(limit_s, self.at.deadline_s), on_event)

    @contextlib.contextmanager
    def creating(
        self,
        base: Change | None = None,
        *,
        origin: Position | None = None,
        secret: Secret | None = None,
        hidden: bool = False,
    ) -> Iterator[Place]:
        """See `Place.creating`."""
        try:
            with super().creating(base, origin=origin, secret=secret, hidden=hidden) as place:
                yield place
        except NotSealed:
            raise BadUrl(
                f"The server has no place for a sealed backup at {redacted(self.url)}. Nothing was "
                "made. In the server's list of nodes, give this node a directory of objects, such "
                "as objects:///srv/backup/alice"
            ) from None
