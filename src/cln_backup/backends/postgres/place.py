"""`postgresql://HOST/DATABASE?node=NAME`: a backup in a PostgreSQL database."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from cln_backup.backends.dir.create import create_first_base
from cln_backup.backends.dir.keys import (
    add_key_slot,
    create_keys,
    remove_key_slot,
    require_listed,
    require_master_key,
)
from cln_backup.backends.events import ignore
from cln_backup.backends.inventory import Inventory, Key
from cln_backup.backends.place import Concession, Keeps, Place
from cln_backup.backends.postgres.link import Link
from cln_backup.backends.postgres.opening import newest_header, read_head
from cln_backup.backends.postgres.reader import PostgresReader
from cln_backup.backends.postgres.schema import RIGHTS
from cln_backup.backends.postgres.url import parse_postgres_url
from cln_backup.formats import v2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cln_backup.backends.contract import Reader
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.postgres.tables import TableObjects
    from cln_backup.backends.postgres.writer import PostgresWriter
    from cln_backup.backends.secrets import Secret
    from cln_backup.backends.ticket import Folded, Statistics
    from cln_backup.model.change import Change
    from cln_backup.model.position import Position

OPEN_WRITER_S: Final = 50.0
"""How long the first call of a node waits: other plugins time out about 120 s after its start."""

OPEN_READER_S: Final = 15.0


class _Ended(Exception):
    """A scratch backup is no longer needed."""


class PostgresPlace(Place):
    """A node's name in a database. Opening also raises `AccessDenied` and `Unreachable`."""

    can_encrypt = True
    keeps_node_files = True

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.at = parse_postgres_url(url)

    @property
    def removes_unfinished(self) -> bool:
        """See `Place.removes_unfinished`."""
        return True

    @property
    def rights(self) -> str:
        """See `Place.rights`: SQL."""
        return RIGHTS

    @property
    def keeps(self) -> Keeps:
        """See `Place.keeps`."""
        return Keeps(self.at.keep, self.at.keep_days)

    @property
    def concessions(self) -> frozenset[Concession]:
        """See `Place.concessions`."""
        given_up = {Concession.UNSAFE: self.at.unsafe, Concession.PLAIN: self.at.insecure}
        return frozenset(each for each, is_so in given_up.items() if is_so)

    @contextlib.contextmanager
    def scratch_backup(self) -> Iterator[Place]:
        """See `Place.scratch_backup`: one that is never published, as if its making failed."""
        from cln_backup.backends.postgres.create import with_node

        url = with_node(self.url, f"{self.at.node}.write-test")
        with (
            contextlib.suppress(_Ended),
            PostgresPlace(url).creating(hidden=True) as place,
        ):
            yield place
            raise _Ended

    @contextlib.contextmanager
    def creating(
        self,
        base: Change | None = None,
        *,
        origin: Position | None = None,
        secret: Secret | None = None,
        hidden: bool = False,
    ) -> Iterator[Place]:
        """See `Place.creating`. The tables are made, if the database has none yet."""
        from cln_backup.backends.postgres.create import Creation

        with contextlib.closing(Link(self.at, ignore)) as link:
            creation = Creation(link)
            try:
                with link.within(OPEN_WRITER_S):
                    creation.begin()
                backup_id = os.urandom(v2.ID_BYTES)
                store = creation.store(backup_id, None)
                key = create_keys(self.at, store.objects, backup_id, secret)
                create_first_base(creation.store(backup_id, key), base, origin)
                if hidden:
                    yield PostgresPlace(creation.url(self.url))
                    creation.publish()
                else:
                    creation.publish()
                    yield self
                creation.finish()
            except BaseException:
                creation.withdraw()
                raise

    def open_reader(
        self,
        *,
        secret: Secret | None = None,
        on_event: OnEvent = ignore,
        timeout_s: float | None = None,
        accept_incomplete: bool = False,  # noqa: ARG002 - of directories that were copied
    ) -> PostgresReader:
        """See `Place.open_reader`."""
        limit_s = OPEN_READER_S if timeout_s is None else min(OPEN_READER_S, timeout_s)
        return PostgresReader(self, secret, on_event, limit_s)

    def _open_writer(
        self, secret: Secret | None, on_event: OnEvent, timeout_s: float | None
    ) -> PostgresWriter:
        return self._writer(secret, on_event, timeout_s, forced=False)

    def _writer(
        self, secret: Secret | None, on_event: OnEvent, timeout_s: float | None, *, forced: bool
    ) -> PostgresWriter:
        from cln_backup.backends.postgres.writer import PostgresWriter

        limit_s = OPEN_WRITER_S if timeout_s is None else min(OPEN_WRITER_S, timeout_s)
        return PostgresWriter(self, secret, on_event, limit_s, forced=forced)

    def fence(
        self,
        node_id: str | None = None,
        *,
        secret: Secret | None = None,
        on_event: OnEvent = ignore,
    ) -> PostgresWriter:
        """See `Place.fence`. Opening fences; here even a writer that is alive."""
        writer = self._writer(secret, on_event, None, forced=True)
        if node_id is not None:
            try:
                writer.claim(node_id)
            except BaseException:
                writer.close()
                raise
        return writer

    def compact(
        self,
        fold: Callable[[Reader], Folded],
        *,
        if_it_pays: bool = False,
        secret: Secret | None = None,
        on_event: OnEvent = ignore,
    ) -> Statistics:
        """See `Place.compact`. Then all that has expired is removed."""
        done = super().compact(fold, if_it_pays=if_it_pays, secret=secret, on_event=on_event)
        if "would_be" not in done:
            with self._open_writer(secret, on_event, None) as writer:
                writer.remove_expired()
        return done

    def keys(self) -> list[Key]:
        """See `Place.keys`."""
        with contextlib.closing(Link(self.at, ignore)) as link:
            return require_listed(self.at.path, *self._newest(link))

    def _newest(self, link: Link) -> tuple[TableObjects, v2.Open]:
        with link.within(OPEN_READER_S):
            objects, _, found = newest_header(link, read_head(link))
        return objects, found

    def add_key(self, added: Secret, label: str, *, secret: Secret | None = None) -> None:
        """See `Place.add_key`."""
        with self.open_reader(secret=secret) as reader:
            store = reader.store
            key = require_master_key(store)
            add_key_slot(store.objects, store.backup_id, key, added, label)

    def remove_key(self, label: str) -> None:
        """See `Place.remove_key`. No key slots at all is a different error."""
        with contextlib.closing(Link(self.at, ignore)) as link:
            objects, newest = self._newest(link)
            require_listed(self.at.path, objects, newest)
            with objects.locked("keys"):  # two at once would remove the last two
                remove_key_slot(objects, newest.backup_id, label)

    def usage(self) -> Inventory:
        """See `Place.usage`."""
        with contextlib.closing(Link(self.at, ignore)) as link:
            objects, newest = self._newest(link)
            cipher, keys = None, list[Key]()
            if newest.cipher != v2.PLAIN:
                cipher, keys = "AES-256-GCM", require_listed(self.at.path, objects, newest)
            bases = objects.list("base-")
            oldest = objects.status(bases[0])
            space = objects.space_bytes()
            oldest_at = None if oldest is None else oldest.stored_at
            return Inventory(cipher, tuple(keys), len(bases), oldest_at, space)
