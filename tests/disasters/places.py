"""The kinds of backup that a disaster may meet, each in a directory of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup.backends import create_backend, open_reader, open_writer
from tests.histories import add_all, told, told_by

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cln_backup.model.change import Change
    from tests.disasters.disk import Files
    from tests.histories import Told

KINDS = ("file", "dir", "dir-encrypted")
DIRECTORIES = KINDS[1:]
NAME = "node.bkp"

_HEADER_BYTES = 512


def url_in(directory: Path, kind: str = "file") -> str:
    """The URL of the backup in a directory; its key is beside the directory."""
    if kind == "file":
        return f"file://{directory}/{NAME}"
    if kind == "dir":
        return f"dir://{directory}"
    key = directory.parent / "node.key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(bytes(range(32)))
    return f"dir://{directory}?key-file={key}"


def make(directory: Path, changes: Sequence[Change], kind: str = "file") -> None:
    """A backup that holds these changes."""
    create_backend(url_in(directory, kind), None)
    with open_writer(url_in(directory, kind)) as backend:
        add_all(backend, changes)


def is_there(files: Files, kind: str) -> bool:
    """Whether there is a backup in a directory that holds these files."""
    return NAME in files if kind == "file" else any(name.startswith("base-") for name in files)


def written(files: Files, kind: str) -> Files:
    """The part of these files that differs when any part of one more change is on the disk."""
    if kind == "file":
        return {NAME: files[NAME]} if NAME in files else {}
    records = {
        name: content[_HEADER_BYTES:].rstrip(b"\x00")
        for name, content in files.items()
        if name.startswith("log-")
    }
    return {name: content for name, content in records.items() if content}


def kept_aside(directory: Path, kind: str) -> dict[str, list[Told]]:
    """The files of changes that were dropped, and what each holds."""
    if kind == "file":
        return {path.name: told_by(f"file://{path}") for path in directory.glob("*.dropped-*")}
    names = sorted(path.name for path in directory.glob("dropped-*"))
    with open_reader(url_in(directory, kind)) as backend:
        changes = [told([change]) for change in backend.dropped_changes()]
    return dict(zip(names, changes, strict=True))
