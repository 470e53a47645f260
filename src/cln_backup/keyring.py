"""Who can unlock an encrypted backup: at the start of one, and later."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from cln_backup import fsio
from cln_backup.backends import dir_keys
from cln_backup.backends.dir import DirBackend
from cln_backup.backends.dir_keys import (
    Secret,
    needs_passphrase,
    passphrase_secret,
    secret_from,
    secret_of_words,
    unlocking_with,
)
from cln_backup.errors import AlreadyExists, BadUrl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.formats.holders import HolderKind

__all__ = [
    "Key",
    "Secret",
    "add_key",
    "add_keys_at_init",
    "encrypted",
    "list_keys",
    "make_key_file",
    "needs_passphrase",
    "passphrase_secret",
    "remove_key",
    "secret_from",
    "secret_of_words",
    "unlocking_with",
]

KEY_NAME = "backup.key"
HSM_SECRET_NAME = "hsm_secret"  # noqa: S105 - the name of a file
_KEY_BYTES = 32


class Key(NamedTuple):
    """One who can unlock a backup.

    Attributes:
        label: its name.
        kind: `passphrase`, `key-file` or `hsm-secret`.
        created_at: seconds since 1970.
    """

    label: str
    kind: str
    created_at: float


def list_keys(url: str) -> list[Key]:
    """All who can unlock a backup; nothing needs to be unlocked for it.

    Raises:
        NotFound, Damaged, BadUrl, StorageError.
    """
    _require_dir(url)
    path, backup_id = DirBackend.identity(url)
    return [
        Key(holder.label, _name(holder.kind), holder.created_ms / 1000)
        for holder in dir_keys.holders(path, backup_id)
    ]


def add_key(url: str, secret: Secret, label: str | None = None) -> str:
    """Lets one more secret unlock a backup, which must be unlocked now; returns its name.

    On stable storage when it returns. The backup may be written to meanwhile.

    Raises:
        Locked: the backup is not unlocked, or not encrypted.
        AlreadyExists: there is a key of this name.
    """
    _require_dir(url)
    with DirBackend.open(url, writable=False) as backend:
        path, backup_id, master_key = backend.keys()
    label = label or _name(secret.kind)
    dir_keys.add_holder(path, backup_id, master_key, secret, label)
    return label


def remove_key(url: str, label: str) -> None:
    """Lets a secret no longer unlock a backup. On stable storage when it returns.

    Raises:
        NotFound, Locked: nothing was changed.
    """
    _require_dir(url)
    path, backup_id = DirBackend.identity(url)
    dir_keys.remove_holder(path, backup_id, label)


def make_key_file(path: str) -> None:
    """Makes a key file of 32 random bytes that only its owner may read, if there is none."""
    if os.path.lexists(path):
        return
    fd, built = fsio.create_beside(path, "new", op="create key file")
    try:
        fsio.write_at(fd, [os.urandom(_KEY_BYTES)], 0, op="write key file")
        fsio.sync(fd, op="sync key file")
        fsio.publish(built, path, op="publish key file")
    finally:
        os.close(fd)
        fsio.remove(built, op="remove unfinished key file")


@contextmanager
def encrypted(url: str, directory: str) -> Iterator[str]:
    """The URL with a key file in the node's directory, which the node unlocks the backup with.

    The file is made here, and taken away again where what runs inside fails.
    """
    _require_dir(url)
    if not os.path.isdir(directory):
        yield url  # what runs inside says so
        return
    path = os.path.join(os.path.abspath(directory), KEY_NAME)
    if os.path.lexists(path):
        raise AlreadyExists(
            f"{path} exists: it unlocks another backup, and is left as it is. Name it in the URL "
            "(?key-file=…) to use it, or move it away."
        )
    make_key_file(path)
    try:
        joint = "&" if "?" in url else "?"
        with unlocking_with(None):
            yield f"{url}{joint}key-file={quote(path)}"
    except BaseException:
        fsio.remove(path, op="remove unused key file")
        raise


def add_keys_at_init(url: str, directory: str) -> list[str]:
    """Adds what a person gave, and the node's own secret where it can be read; returns all names.

    An `hsm_secret` with a passphrase is left out: `backup-cli key add` asks for it.
    """
    given = dir_keys.given_secret()
    with unlocking_with(None):
        if given is not None:
            add_key(url, given)
        path = os.path.join(directory, HSM_SECRET_NAME)
        own = given is not None and _name(given.kind) == "hsm-secret"
        if os.path.exists(path) and not own and not needs_passphrase(path):
            add_key(url, secret_from(("hsm-secret", path)))
        return [key.label for key in list_keys(url)]


def _name(kind: HolderKind) -> str:
    return kind.name.lower().replace("_", "-")


def _require_dir(url: str) -> None:
    if not url.startswith("dir:"):
        raise BadUrl("Only a dir: backup can be encrypted; formats of other schemes cannot.")
