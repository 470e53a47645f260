"""Secrets that unlock an encrypted backup: part of the contract, for formats with encryption.

A secret comes from the file that the URL names, or from the caller, who asked the operator for it.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from cln_backup.formats import hsm_secret
from cln_backup.formats.key_slots import SecretKind
from cln_backup.model.errors import Locked
from cln_backup.storage import fsio

_MIN_KEY_FILE_BYTES: Final = 32
_MAX_KEY_FILE_BYTES: Final = 4096
_MAX_PASSPHRASE_BYTES: Final = 1024
_READ: Final = "read key"

KEY_FOR_A_NODE: Final = (
    "A node starts unattended and needs a key file: `backup-cli key add --new-key-file PATH URL` "
    "makes one; name it in backup.lock, after the URL: ?key-file=PATH"
)
"""Advice if the plugin cannot unlock its backup."""


class Secret(NamedTuple):
    """The secret of a key slot: a passphrase, a key file's bytes, or the node's own secret.

    Attributes:
        path: of the key file.
        hsm_secret: the `hsm_secret` file with it, in the form that lightningd reads.
        is_typed: whether it was typed as words.
    """

    kind: SecretKind
    content: bytes
    path: str | None = None
    hsm_secret: bytes | None = None
    is_typed: bool = False


def needs_passphrase(path: str) -> bool:
    """Whether the `hsm_secret` at a path needs a passphrase."""
    return hsm_secret.needs_passphrase(read_key(path))


def check_words(words: str) -> None:
    """Makes sure that these are valid words of a node's secret. Raises `Locked`."""
    from cln_backup.formats.words import fault_of

    fault = fault_of(words)
    if fault is not None:
        raise Locked(f"Invalid words: {fault}. Nothing was read or changed.")


def secret_of_words(words: str, passphrase: str = "") -> Secret:
    """The node's secret from its words on paper, in upper or lower case.

    Raises:
        Locked: as `check_words`.
    """
    check_words(words)
    seed = hsm_secret.seed_of(words.lower(), passphrase)
    file = hsm_secret.file_of_words(words, passphrase)
    return Secret(SecretKind.HSM_SECRET, seed, None, file, is_typed=True)


def as_before_words(secret: Secret) -> Secret:
    """The secret that the tool of lightningd's releases before 25.12 made of the same words.

    It is the first half of their seed.
    """
    half = secret.content[: hsm_secret.PLAIN_BYTES]
    return Secret(SecretKind.HSM_SECRET, half, None, half)


def secret_in(content: bytes, where: str, passphrase: str | None = None) -> bytes:
    """The node's secret in the content of an `hsm_secret` file.

    Raises:
        Locked: it is not one, or its passphrase is wrong or missing.
    """
    try:
        return hsm_secret.secret_of(content, passphrase)
    except hsm_secret.NoSecret as error:
        raise Locked(f"{where} cannot be used: {error}. Nothing was changed.") from None


def is_protected(content: bytes) -> bool:
    """Whether the content of an `hsm_secret` file needs a passphrase."""
    return hsm_secret.needs_passphrase(content)


def is_in_file(secret: bytes, content: bytes) -> bool:
    """Whether an `hsm_secret` file contains a secret, as far as that is seen without a passphrase.

    `content` must be of an `hsm_secret`.
    """
    return bool(hsm_secret.is_file_of(content, secret))


def node_id_of_secret(secret: bytes) -> str:
    """The id of the node with this secret."""
    return hsm_secret.node_id_of(secret)


def read_key(path: str) -> bytes:
    """The start of a small file, longer than any key. Raises `StorageError`."""
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
        Locked: the file does not contain such a secret.
        StorageError: it cannot be read.
    """
    name, path = source
    content = read_key(path)
    if name == "passphrase-file":
        line = content.partition(b"\n")[0].rstrip(b"\r")
        return passphrase_secret(line.decode("utf-8", "surrogateescape"))
    if name == "key-file":
        if not _MIN_KEY_FILE_BYTES <= len(content) <= _MAX_KEY_FILE_BYTES:
            raise Locked(f"{path} is not a key file, which has 32 to 4096 random bytes.")
        return Secret(SecretKind.KEY_FILE, content, path)
    try:
        found = hsm_secret.secret_of(content, passphrase)
        return Secret(SecretKind.HSM_SECRET, found, None, content)
    except hsm_secret.NoSecret as error:
        hint = f" {KEY_FOR_A_NODE}" if isinstance(error, hsm_secret.NeedsPassphrase) else ""
        raise Locked(f"{path} cannot be used to unlock the backup: {error}.{hint}") from None


def passphrase_secret(passphrase: str) -> Secret:
    """A passphrase as a secret. Raises `Locked` if it is empty or too long.

    Some systems send a letter and its accent as one character, others as two: normalization
    (Unicode's form C) gives the same bytes.
    """
    import unicodedata

    content = unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogateescape")
    if not 0 < len(content) <= _MAX_PASSPHRASE_BYTES:
        raise Locked("A passphrase must have between 1 and 1024 bytes.")
    return Secret(SecretKind.PASSPHRASE, content)


def kind_name(kind: SecretKind) -> str:
    """The name of a kind of secret: `passphrase`, `key-file` or `hsm-secret`."""
    return kind.name.lower().replace("_", "-")
