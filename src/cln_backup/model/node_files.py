"""The small files of a node that a backup keeps beside the history, as values.

A name says where the file belongs: `network/config` in the node's network directory, `base/config`
in the directory above it, `tor/hostname` in Tor's directory of the node's onion service.
"""

from __future__ import annotations

from typing import Final, NamedTuple

NETWORK: Final = "network"
BASE: Final = "base"
TOR: Final = "tor"
_PLACES: Final = (NETWORK, BASE, TOR)

MAX_BYTES: Final = 4 << 20
"""Of all files of a set together."""

MAX_FILES: Final = 256
MAX_NAME_BYTES: Final = 255
_MAX_PARTS: Final = 8


class Wanted(NamedTuple):
    """The files that a node's operator wants to have kept.

    Attributes:
        keep: whether to keep any; `None`: if the backup is encrypted.
        hsm_secret: whether to keep the node's secret, in an encrypted backup.
        tor_dir: the directory of Tor's onion service.
    """

    keep: bool | None = None
    hsm_secret: bool = False
    tor_dir: str | None = None

    def in_backup(self, *, is_encrypted: bool) -> bool:
        """Whether to keep files in such a backup."""
        return is_encrypted if self.keep is None else self.keep


class NodeFile(NamedTuple):
    """One file.

    Attributes:
        name: where it belongs.
        mode: its permission bits.
        mtime_ms: when it was last modified, in milliseconds since 1970.
    """

    name: str
    mode: int
    mtime_ms: int
    content: bytes

    @property
    def place(self) -> str:
        """The first part of the name: `NETWORK`, `BASE` or `TOR`."""
        return self.name.partition("/")[0]

    @property
    def path(self) -> str:
        """The rest of the name, relative to that place."""
        return self.name.partition("/")[2]


class NodeFiles(NamedTuple):
    """A whole set of files.

    Attributes:
        taken_ms: when they were read, in milliseconds since 1970.
        files: sorted by name.
    """

    taken_ms: int
    files: tuple[NodeFile, ...]

    def named(self, name: str) -> NodeFile | None:
        """The file of this name."""
        return next((file for file in self.files if file.name == name), None)


def is_valid_name(name: str) -> bool:
    """Whether a file may have this name: it cannot lead out of its place."""
    place, *parts = name.split("/")
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        return False
    return (
        place in _PLACES
        and 0 < len(parts) < _MAX_PARTS
        and size_bytes <= MAX_NAME_BYTES
        and name.isprintable()
        and all(part not in ("", ".", "..") for part in parts)
    )
