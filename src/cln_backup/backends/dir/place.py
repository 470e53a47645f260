"""`dir:///path`: a directory of format 2, an append-only log of sealed records."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final, cast

from cln_backup.backends.dir.base import identity, is_encrypted, list_keys, take_inventory
from cln_backup.backends.dir.keys import (
    add_key_slot,
    key_objects,
    remove_key_slot,
    require_master_key,
)
from cln_backup.backends.dir.url import parse_dir_url
from cln_backup.backends.events import ignore
from cln_backup.backends.paths import require_outside
from cln_backup.backends.place import Keeps, Place
from cln_backup.model.errors import WriterConflict
from cln_backup.storage import directories

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.contract import Writer
    from cln_backup.backends.dir.appender import DirWriter
    from cln_backup.backends.dir.reader import DirReader
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.inventory import Inventory, Key
    from cln_backup.backends.secrets import Secret
    from cln_backup.model.change import Change
    from cln_backup.model.position import Position

_FENCE_TRIES: Final = 4
_FENCE_PAUSE_S: Final = 0.1


class DirPlace(Place):
    """A directory."""

    can_encrypt = True
    keeps_node_files = True

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.at = parse_dir_url(url)

    @property
    def storage_dir(self) -> str:
        """See `Place.storage_dir`."""
        return self.at.path

    @property
    def scratch_dir(self) -> str | None:
        """See `Place.scratch_dir`."""
        return None if is_encrypted(self.at) else self.at.path

    @property
    def keeps(self) -> Keeps:
        """See `Place.keeps`."""
        return Keeps(self.at.keep, self.at.keep_days)

    @contextlib.contextmanager
    def scratch_backup(self) -> Iterator[Place]:
        """See `Place.scratch_backup`: in a directory inside, as the work on a compaction."""
        from cln_backup.backends.dir.create import creating_backup
        from cln_backup.storage import scratch

        with scratch.directory(self.at.path, op="write test") as work:
            inside = DirPlace(f"dir://{os.path.join(work, 'backup')}")
            with creating_backup(inside.at, None, None, None):
                pass
            yield inside

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
        from cln_backup.backends.dir.create import build_inside, creating_backup

        require_outside(os.path.dirname(self.at.path))
        if not hidden:
            with creating_backup(self.at, base, origin, secret):
                yield self
            return
        with build_inside(self.at.path) as path:
            inside = DirPlace(f"dir://{path}" + self.url.removeprefix(self.url.partition("?")[0]))
            with creating_backup(inside.at, base, origin, secret):
                pass
            yield inside

    def open_reader(
        self,
        *,
        secret: Secret | None = None,
        on_event: OnEvent = ignore,
        timeout_s: float | None = None,  # noqa: ARG002 - of storages that are not at hand
        accept_incomplete: bool = False,
    ) -> DirReader:
        """See `Place.open_reader`."""
        from cln_backup.backends.dir.reader import DirReader

        return DirReader(self, secret, on_event, accept_incomplete=accept_incomplete)

    def _open_writer(
        self,
        secret: Secret | None,
        on_event: OnEvent,
        timeout_s: float | None,  # noqa: ARG002
    ) -> DirWriter:
        from cln_backup.backends.dir.appender import DirWriter

        return DirWriter(self, secret, on_event)

    def fence(
        self,
        node_id: str | None = None,
        *,
        secret: Secret | None = None,
        on_event: OnEvent = ignore,
    ) -> Writer:
        """See `Place.fence`: the next segment is claimed.

        An older writer that is busy may have stored more before the claim; then again, to read it.
        """
        for last in (False,) * _FENCE_TRIES + (True,):
            writer = super().fence(node_id, secret=secret, on_event=on_event)
            try:
                cast("DirWriter", writer).claim_segment()
            except WriterConflict:
                writer.close()
                if last:
                    raise
                time.sleep(_FENCE_PAUSE_S)
            except BaseException:
                writer.close()
                raise
            else:
                break
        return writer

    def keys(self) -> list[Key]:
        """See `Place.keys`."""
        return list_keys(self.at)

    def add_key(self, added: Secret, label: str, *, secret: Secret | None = None) -> None:
        """See `Place.add_key`."""
        with self.open_reader(secret=secret) as reader:
            store = reader.store
            key = require_master_key(store)
            add_key_slot(key_objects(store.path), store.backup_id, key, added, label)

    def remove_key(self, label: str) -> None:
        """See `Place.remove_key`."""
        self.keys()  # no key slots at all is a different error
        path, backup_id = identity(self.at)
        with directories.locked(path, op="remove key"):
            remove_key_slot(key_objects(path), backup_id, label)

    def usage(self) -> Inventory:
        """See `Place.usage`."""
        return take_inventory(self.at)
