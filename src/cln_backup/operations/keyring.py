"""The key slots of an encrypted backup: the first ones, and changes to them."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

from cln_backup.backends import place_at
from cln_backup.backends.dir.url import parse_dir_url
from cln_backup.backends.inventory import Key
from cln_backup.backends.paths import require_outside
from cln_backup.backends.secrets import (
    Secret,
    check_words,
    kind_name,
    needs_passphrase,
    passphrase_secret,
    secret_from,
    secret_of_words,
)
from cln_backup.model.errors import AlreadyExists, BackupError, NotFound
from cln_backup.node.settings import LOCK_NAME
from cln_backup.storage import fsio, interruption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "Key",
    "Secret",
    "add_key",
    "check_words",
    "encrypted",
    "is_encrypted",
    "key_file",
    "list_keys",
    "needs_passphrase",
    "network_directory",
    "passphrase_secret",
    "remove_key",
    "secret_from",
    "secret_of_words",
    "secrets_at_init",
    "with_key_file",
    "without_keys",
]

KEY_NAME = "backup.key"
HSM_SECRET_NAME = "hsm_secret"  # noqa: S105 - the name of a file
_KEY_BYTES = 32
_KEYS = tuple(f"{name}=" for name in ("key-file", "hsm-secret", "passphrase-file"))


def list_keys(url: str) -> list[Key]:
    """The key slots of a backup, which need not be unlocked.

    Raises:
        NotFound, Damaged, BadUrl, StorageError.
    """
    return place_at(url).keys()


def is_encrypted(url: str) -> bool:
    """Whether a backup is encrypted; it need not be unlocked.

    Raises:
        NotFound, Damaged, BadUrl, StorageError.
    """
    place = place_at(url)
    return place.can_encrypt and bool(place.keys())


def add_key(
    url: str, added: Secret, label: str | None = None, *, secret: Secret | None = None
) -> str:
    """Adds a key slot to a backup, which `secret` or its URL unlocks; returns the slot's name.

    The default name is the kind of the secret, with a number if the name exists. On stable
    storage when it returns. The backup may be written to meanwhile.

    Raises:
        Locked: the backup is not unlocked, or not encrypted.
        AlreadyExists: there is a key slot of this name.
    """
    if label is None:
        label = kind = kind_name(added.kind)
        taken = {key.label for key in list_keys(url)}
        for number in range(2, len(taken) + 2):
            if label not in taken:
                break
            label = f"{kind}-{number}"
    place_at(url).add_key(added, label, secret=secret)
    return label


def remove_key(url: str, label: str) -> None:
    """Removes a key slot. On stable storage when it returns.

    Raises:
        NotFound, Locked: nothing was changed.
    """
    with interruption.deferred():
        place_at(url).remove_key(label)
        interruption.finished()


@contextmanager
def key_file(path: str, needed: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Makes a key file of 32 random bytes that only its owner may read, if it does not exist.

    It is removed again if the block fails, unless it is `needed` anyway.
    """
    with interruption.deferred():
        if os.path.lexists(path):
            yield
            return
        require_outside(os.path.dirname(os.path.abspath(path)))
        _make_key_file(path)
        try:
            yield
            interruption.check()
        except BaseException:
            with interruption.held():
                if not needed():
                    fsio.remove(path, op="remove unused key file")
            raise


def _make_key_file(path: str) -> None:
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
    """The URL with a key file in the node's directory, with which the node unlocks the backup.

    The file is made here, and removed again if the block does not make a backup.
    """
    place_at(url).require_encryption()
    if not os.path.isdir(directory):
        yield url  # the block reports that
        return
    path = os.path.join(os.path.abspath(directory), KEY_NAME)
    if os.path.lexists(path):
        raise AlreadyExists(
            f"{path} exists: it unlocks another backup, and was not changed. To use it, name it in "
            "the URL (?key-file=…); otherwise move it away."
        )
    with key_file(path, needed=lambda: _stands(url)):
        yield with_key_file(url, path)


def with_key_file(url: str, path: str) -> str:
    """The URL of a backup that the key file unlocks."""
    joint = "&" if "?" in url else "?"
    return f"{url}{joint}key-file={quote(path)}"


def without_keys(url: str) -> str:
    """The URL without the path of a key, for a command line that names another one."""
    place, _, query = url.partition("?")
    kept = [pair for pair in query.split("&") if not pair.startswith(_KEYS)]
    return f"{place}?{'&'.join(kept)}" if any(kept) else place


def _stands(url: str) -> bool:
    """Whether the backup exists; the node's key file may be its only key."""
    try:
        list_keys(url)
    except NotFound:
        return False
    except BackupError:
        return True
    return True


def secrets_at_init(directory: str, given: Secret | None) -> list[Secret]:
    """The secrets for a new backup: the operator's, and the node's own if it can be read.

    An `hsm_secret` with a passphrase is left out: `backup-cli key add` asks for it.

    Raises:
        Locked: the node's secret cannot be used.
    """
    secrets = [] if given is None else [given]
    path = os.path.join(directory, HSM_SECRET_NAME)
    own = given is not None and kind_name(given.kind) == "hsm-secret"
    if os.path.exists(path) and not own and not needs_passphrase(path):
        secrets.append(secret_from(("hsm-secret", path)))
    return secrets


def network_directory(url: str, given: Secret | None = None) -> str | None:
    """The network directory that contains the key file of a backup, if it is one.

    The node's database is there unencrypted anyway.
    """
    if not url.startswith("dir:"):
        return None
    source = parse_dir_url(url).key_source
    path = source[1] if given is None and source is not None else given and given.path
    directory = os.path.dirname(os.path.abspath(path)) if path else None
    if directory is None or not os.path.exists(os.path.join(directory, LOCK_NAME)):
        return None
    return directory
