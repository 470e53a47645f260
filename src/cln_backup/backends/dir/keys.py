"""Key slots of an encrypted `dir:` backup: unlocks it, and manages their files.

The file of a key slot is `key-LABEL`, in the backup's directory. The secret comes from the file
that the URL names, or from the caller, who asked the operator for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import TYPE_CHECKING, Final, Protocol

from cln_backup.backends.inventory import Key
from cln_backup.backends.secrets import (
    KEY_FOR_A_NODE,
    Secret,
    kind_name,
    secret_from,
)
from cln_backup.formats import v2
from cln_backup.formats.key_slots import (
    FILE_BYTES,
    LABEL_BYTES,
    KeySlot,
    pack_key_slot,
    unpack_key_slot,
    unwrap,
)
from cln_backup.formats.seals import KEY_BYTES, KeySealer, derive
from cln_backup.model.errors import AlreadyExists, BadUrl, Damaged, Locked, NotFound
from cln_backup.storage.local_objects import LocalObjects

if TYPE_CHECKING:
    from cln_backup.backends.dir.store import Store
    from cln_backup.storage.objects import Objects

_PREFIX: Final = "key-"
_ADDING: Final = "adding"
"""A prefix of its own: a key may be added beside a writer, which removes unfinished objects."""
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class NodeVeil:
    """Encrypts the id of the node that the backup belongs to; see `Veil`."""

    def __init__(self, master_key: bytes) -> None:
        self._master_key = master_key

    def hide(self, text: str) -> str:
        """See `Veil`."""
        salt = os.urandom(v2.SALT_BYTES)
        return (salt + self._sealer(salt).seal(0, b"", text.encode())).hex()

    def reveal(self, hidden: str) -> str | None:
        """See `Veil`."""
        with contextlib.suppress(ValueError):
            data = bytes.fromhex(hidden)
            salt, sealed = data[: v2.SALT_BYTES], data[v2.SALT_BYTES :]
            if len(sealed) > v2.SEAL_BYTES:
                found = self._sealer(salt).unseal(0, b"", sealed)
                return None if found is None else bytes(found).decode()
        return None

    def _sealer(self, salt: bytes) -> KeySealer:
        return KeySealer(derive(self._master_key, salt, b"cln-backup node"))


class Locatable(Protocol):
    """The part of a parsed URL that unlocking needs."""

    @property
    def path(self) -> str:
        """Where the backup is, for messages."""

    @property
    def key_source(self) -> tuple[str, str] | None:
        """The kind and the path of the file with the secret; `None` if there is none."""


def key_objects(path: str) -> LocalObjects:
    """The objects of a directory, for key slots: added beside a writer, which removes its own."""
    return LocalObjects(path, building=_ADDING)


def unlock(place: Locatable, objects: Objects, backup_id: bytes, secret: Secret | None) -> bytes:
    """The master key of the backup. Raises `Locked`, `Damaged`, `StorageError`."""
    if secret is None and place.key_source is not None:
        kind, path = place.key_source
        if not os.path.lexists(path):
            raise Locked(
                f"The backup in {place.path} is encrypted, and its {kind} {path} is missing. Put "
                f"it back. If it is lost: {KEY_FOR_A_NODE}"
            )
        secret = secret_from(place.key_source)
    if secret is None:
        raise Locked(
            f"The backup in {place.path} is encrypted. Give a secret that unlocks it: --key-file, "
            "--hsm-secret or --passphrase-file; or --words or --passphrase, which ask for it. "
            f"{KEY_FOR_A_NODE}"
        )
    found = key_slots(objects, backup_id)
    if not found:
        raise without_keys(place.path)
    for slot in found:
        if slot.kind is secret.kind and (key := unwrap(slot, secret.content)) is not None:
            return key
    what = secret.kind.name.lower().replace("_", " ")
    raise Locked(
        f"The backup in {place.path} is not unlocked by this {what}. It was mistyped, belongs to "
        "another backup or node, or was never added (`backup-cli key list` lists the key slots)."
    )


def without_keys(path: str) -> Locked:
    """The error for an encrypted backup without key slots."""
    return Locked(
        f"The backup in {path} is encrypted and has no key slots (files key-…), without which no "
        "secret can unlock it. Look for these files where the backup was copied from, or in an "
        "older copy: any key slot of this backup unlocks all of it."
    )


def create_keys(
    place: Locatable, objects: Objects, backup_id: bytes, secret: Secret | None
) -> bytes | None:
    """Makes a master key and its first key slot, if the URL or the operator gave a secret.

    The file of the key slot is durable when it returns, except for its name.
    """
    if secret is None:
        if place.key_source is None:
            return None
        secret = secret_from(place.key_source)
    master_key = os.urandom(KEY_BYTES)
    label = kind_name(secret.kind)
    add_key_slot(objects, backup_id, master_key, secret, label)
    return master_key


def listed(objects: Objects, backup_id: bytes) -> list[Key]:
    """The facts about each key slot, without unlocking it. Raises `Damaged`."""
    return [
        Key(slot.label, kind_name(slot.kind), slot.created_ms / 1000)
        for slot in key_slots(objects, backup_id)
    ]


def require_listed(path: str, objects: Objects, newest: v2.Open) -> list[Key]:
    """As `listed`; raises `Locked` for an encrypted backup without key slots."""
    found = listed(objects, newest.backup_id)
    if not found and newest.cipher != v2.PLAIN:
        raise without_keys(path)
    return found


def require_master_key(store: Store) -> bytes:
    """The key of an open backup. Raises `Locked` if it is not encrypted."""
    if store.master_key is None:
        raise Locked("This backup is not encrypted, so it has no key slots. Copy it to encrypt it.")
    return store.master_key


def add_key_slot(
    objects: Objects, backup_id: bytes, master_key: bytes, secret: Secret, label: str
) -> None:
    """Adds a key slot for the master key; durable with its name when it returns.

    Raises:
        AlreadyExists: there is a key slot of this name.
        BadUrl: the name is not valid.
    """
    if _LABEL.fullmatch(label) is None or len(label) > LABEL_BYTES:
        raise BadUrl(f"Invalid key name {label!r}: use up to 32 letters, digits, dots and dashes.")
    created_ms = time.time_ns() // 1_000_000
    salt = os.urandom(v2.SALT_BYTES)
    data = pack_key_slot(
        secret.kind, label, backup_id, created_ms, salt, secret.content, master_key
    )
    if objects.status(_PREFIX + label) is not None:
        raise _taken(label)
    try:
        objects.put_new(_PREFIX + label, "key", [data], op="publish key")
    except AlreadyExists:  # at this moment
        raise _taken(label) from None


def _taken(label: str) -> AlreadyExists:
    return AlreadyExists(f"A key slot named {label} exists; nothing was changed.")


def key_slots(objects: Objects, backup_id: bytes) -> list[KeySlot]:
    """All key slots of the backup.

    Raises:
        Damaged: the file of a key slot was changed, or belongs to another backup.
    """
    found = []
    for name in objects.list(_PREFIX):
        try:
            slot = unpack_key_slot(objects.get(name, 0, FILE_BYTES + 1))
            if slot.backup_id != backup_id or slot.label != name[len(_PREFIX) :]:
                raise v2.Malformed("a key slot of another backup")
        except v2.Malformed as error:
            raise Damaged(
                f"{objects.where(name)} is damaged: it contains {error}. If another key unlocks "
                "the backup, move this file away and add the key again."
            ) from None
        found.append(slot)
    return found


def remove_key_slot(objects: Objects, backup_id: bytes, label: str) -> None:
    """Removes a key slot; durable when it returns. Two at once could remove the last two.

    A copy of its file still unlocks the backup: for a new master key, copy the backup.

    Raises:
        NotFound: there is no such key slot.
        Locked: it is the last one, without which the backup could not be read.
    """
    labels = [slot.label for slot in key_slots(objects, backup_id)]
    if not labels:
        raise Locked("This backup is not encrypted, so it has no key slots.")
    if label not in labels:
        raise NotFound(f"There is no key slot {label!r}; there are: {', '.join(labels)}.")
    if len(labels) == 1:
        raise Locked(f"{label} is the last key slot; without it the backup could not be read.")
    objects.delete(_PREFIX + label, op="remove key")
