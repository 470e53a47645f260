"""`file:///path`: one file of format 1, as the community's `backup` plugin writes it."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from cln_backup.backends import redacted
from cln_backup.backends.events import ignore
from cln_backup.backends.file import rewrite
from cln_backup.backends.inventory import Inventory, space_bytes
from cln_backup.backends.local_url import absolute_path
from cln_backup.backends.paths import hint_for_directory, require_backup_file, require_outside
from cln_backup.backends.place import Place
from cln_backup.model.errors import AlreadyExists, BadUrl
from cln_backup.storage import directories, fsio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.file.reader import FileReader
    from cln_backup.backends.file.writer import FileWriter
    from cln_backup.backends.secrets import Secret
    from cln_backup.model.change import Change
    from cln_backup.model.position import Position


def path_of(url: str) -> str:
    """The path in a `file:` URL, taken literally: nothing in it is unquoted.

    Raises:
        BadUrl: the path is not absolute, or other programs would read it differently.
    """
    path, _ = absolute_path(url, "file")
    if path.endswith("/") or os.path.isdir(path):
        raise BadUrl(f"{redacted(url)!r} is a directory. {hint_for_directory(path)}")
    return path


class FilePlace(Place):
    """A file."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._path = path_of(url)

    @property
    def path(self) -> str:
        """The file itself, not a link to it, for the lock and for a compaction's rename."""
        return os.path.realpath(self._path)

    @property
    def storage_dir(self) -> str:
        """See `Place.storage_dir`."""
        return os.path.dirname(self.path)

    def scratch_backup(self) -> AbstractContextManager[Place]:
        """See `Place.scratch_backup`."""
        return self._scratch_in(self.storage_dir)

    @contextlib.contextmanager
    def creating(
        self,
        base: Change | None = None,
        *,
        origin: Position | None = None,  # noqa: ARG002 - format 1 has no room for it
        secret: Secret | None = None,
        hidden: bool = False,
    ) -> Iterator[Place]:
        """See `Place.creating`. The file is built beside it, under another name."""
        path = self._path
        if secret is not None:
            raise self._cannot_encrypt()
        require_outside(os.path.dirname(path))
        if os.path.lexists(path):
            raise AlreadyExists(
                f"{path} exists; it was not changed. If it is a backup, you can use it; otherwise "
                "choose another name."
            )
        if hidden:
            from cln_backup.storage import scratch

            with scratch.directory(os.path.dirname(path), op="copy") as directory:
                built = os.path.join(directory, "copy")
                rewrite.create(built, base)
                yield FilePlace(f"file://{built}")
                fsio.publish(built, path, op="publish copy")
            return
        rewrite.create(path, base)
        made = os.lstat(path)
        try:
            yield self
        except BaseException:
            rewrite.withdraw(path, made)
            raise

    def open_reader(
        self,
        *,
        secret: Secret | None = None,  # noqa: ARG002 - of formats that can be encrypted
        on_event: OnEvent = ignore,
        timeout_s: float | None = None,  # noqa: ARG002 - of storages that are not at hand
        accept_incomplete: bool = False,  # noqa: ARG002 - of formats where that shows
    ) -> FileReader:
        """See `Place.open_reader`."""
        from cln_backup.backends.file.reader import FileReader

        return FileReader(self, on_event)

    def _open_writer(
        self,
        secret: Secret | None,  # noqa: ARG002
        on_event: OnEvent,
        timeout_s: float | None,  # noqa: ARG002
    ) -> FileWriter:
        from cln_backup.backends.file.writer import FileWriter

        return FileWriter(self, on_event)

    def usage(self) -> Inventory:
        """See `Place.usage`. All files whose name starts with the backup's belong to it."""
        path = self.path
        require_backup_file(path)
        directory, name = os.path.split(path)
        beside = directories.names(directory, op="list backup")
        names = [name, *(found for found in beside if found.startswith(f"{name}."))]
        space = space_bytes(os.path.join(directory, found) for found in names)
        return Inventory(None, (), None, None, space)
