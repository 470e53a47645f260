"""What unlocks an encrypted backup: part of the contract, for backends whose format can encrypt.

A secret comes from the file that the URL names, or is given by the caller, who asked a person for
it.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from cln_backup.formats import hsm_secret
from cln_backup.formats.holders import HolderKind
from cln_backup.model.errors import Locked
from cln_backup.storage import fsio

_MIN_KEY_FILE_BYTES: Final = 32
_MAX_KEY_FILE_BYTES: Final = 4096
_MAX_PASSPHRASE_BYTES: Final = 1024
_READ: Final = "read key"

KEY_FOR_A_NODE: Final = (
    "A node starts by itself and needs a key file: `backup-cli key add --new-key-file PATH URL` "
    "makes one; name it in backup.lock, after the URL: ?key-file=PATH"
)
"""What to do where a plugin cannot unlock its backup."""


class Secret(NamedTuple):
    """What a holder has: a passphrase, a key file's bytes, or the node's own secret.

    Attributes:
        path: of the key file.
    """

    kind: HolderKind
    content: bytes
    path: str | None = None


def needs_passphrase(path: str) -> bool:
    """Whether the `hsm_secret` at a path can be used with a passphrase only."""
    return hsm_secret.needs_passphrase(read_key(path))


def check_words(words: str) -> None:
    """Makes sure that these can be the words of a node's secret. Raises `Locked`."""
    from cln_backup.formats.words import fault_of

    fault = fault_of(words)
    if fault is not None:
        raise Locked(f"These words are not right: {fault}. Nothing was read or changed.")


def secret_of_words(words: str, passphrase: str = "") -> Secret:
    """The node's secret as its words on paper have it, in capitals or not.

    Raises:
        Locked: as `check_words`.
    """
    check_words(words)
    return Secret(HolderKind.HSM_SECRET, hsm_secret.seed_of(words.lower(), passphrase))


def read_key(path: str) -> bytes:
    """The start of a small file, more than any key has. Raises `StorageError`."""
    fd = fsio.open_existing(path, writable=False, op=_READ)
    try:
        return fsio.read_at(fd, _MAX_KEY_FILE_BYTES + 1, 0, op=_READ)
    finally:
        os.close(fd)


def secret_from(source: tuple[str, str], passphrase: str | None = None) -> Secret:
    """The secret in a file.

    Args:
        source: one of `KEY_SOURCES`, and the path.
        passphrase: of an `hsm_secret` that is protected by one.

    Raises:
        Locked: the file does not hold such a secret.
        StorageError: it cannot be read.
    """
    name, path = source
    content = read_key(path)
    if name == "passphrase-file":
        line = content.partition(b"\n")[0].rstrip(b"\r")
        return passphrase_secret(line.decode("utf-8", "surrogateescape"))
    if name == "key-file":
        if not _MIN_KEY_FILE_BYTES <= len(content) <= _MAX_KEY_FILE_BYTES:
            raise Locked(f"{path} is no key file: it must have between 32 and 4096 random bytes.")
        return Secret(HolderKind.KEY_FILE, content, path)
    try:
        return Secret(HolderKind.HSM_SECRET, hsm_secret.secret_of(content, passphrase))
    except hsm_secret.NoSecret as error:
        hint = f" {KEY_FOR_A_NODE}" if isinstance(error, hsm_secret.NeedsPassphrase) else ""
        raise Locked(f"{path} cannot be used to unlock the backup: {error}.{hint}") from None


def passphrase_secret(passphrase: str) -> Secret:
    """A passphrase as a secret. Raises `Locked` where it is empty or too long.

    Keyboards of one system send a letter and its accent as one character, those of another as two:
    the same passphrase comes to the same bytes (Unicode's normal form C).
    """
    import unicodedata

    content = unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogateescape")
    if not 0 < len(content) <= _MAX_PASSPHRASE_BYTES:
        raise Locked("A passphrase must have between 1 and 1024 bytes.")
    return Secret(HolderKind.PASSPHRASE, content)


def kind_name(kind: HolderKind) -> str:
    """What a person calls such a secret: `passphrase`, `key-file` or `hsm-secret`."""
    return kind.name.lower().replace("_", "-")
