"""The keys of an encrypted `dir:` backup: unlocks it, and keeps the files of its holders.

A holder's file is `key-LABEL`, in the backup's directory. What unlocks comes from the file that the
URL names, or is given by the caller, who asked a person for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import TYPE_CHECKING, Final

from cln_backup.backends.secrets import (
    KEY_FOR_A_NODE,
    Secret,
    kind_name,
    secret_from,
)
from cln_backup.formats import v2
from cln_backup.formats.holders import (
    FILE_BYTES,
    LABEL_BYTES,
    Holder,
    pack_holder,
    unpack_holder,
    unwrap,
)
from cln_backup.formats.seals import KEY_BYTES, KeySealer, derive
from cln_backup.model.errors import AlreadyExists, BadUrl, Damaged, Locked, NotFound
from cln_backup.storage import directories
from cln_backup.storage.local_objects import LocalObjects

if TYPE_CHECKING:
    from cln_backup.backends.dir.url import Place

_PREFIX: Final = "key-"
_ADDING: Final = "adding"
"""A key may be added beside a writer, which removes what is left under the name for buildings."""
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class NodeVeil:
    """Hides which node's backup this is; see `Veil`."""

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
                return None if found is None else found.decode()
        return None

    def _sealer(self, salt: bytes) -> KeySealer:
        return KeySealer(derive(self._master_key, salt, b"cln-backup node"))


def unlock(place: Place, backup_id: bytes, secret: Secret | None) -> bytes:
    """The master key of the backup. Raises `Locked`, `Damaged`, `StorageError`."""
    if secret is None and place.key_source is not None:
        kind, path = place.key_source
        if not os.path.lexists(path):
            raise Locked(
                f"The backup in {place.path} is encrypted, and there is no {path}, which is named "
                f"as its {kind}. Put it back. If it is lost: {KEY_FOR_A_NODE}"
            )
        secret = secret_from(place.key_source)
    if secret is None:
        raise Locked(
            f"The backup in {place.path} is encrypted. Say what unlocks it: --key-file, "
            "--hsm-secret or --passphrase-file; --words or --passphrase, to be asked. "
            f"{KEY_FOR_A_NODE}"
        )
    found = holders(place.path, backup_id)
    if not found:
        raise without_keys(place.path)
    for holder in found:
        if holder.kind is secret.kind and (key := unwrap(holder, secret.content)) is not None:
            return key
    what = secret.kind.name.lower().replace("_", " ")
    raise Locked(
        f"The backup in {place.path} is not unlocked by this {what}. Either it was mistyped, or it "
        "belongs to another backup or node, or it was never added (`backup-cli key list` says what "
        "was)."
    )


def without_keys(path: str) -> Locked:
    """What to raise where a backup is encrypted, and the files of those who unlock it are gone."""
    return Locked(
        f"The backup in {path} is encrypted and has no key files (key-…): without one nobody can "
        "unlock it, whatever secret they have. Look for them where the backup was copied from, or "
        "in an older copy of it: each key file of this backup unlocks all of it."
    )


def create_keys(place: Place, backup_id: bytes, secret: Secret | None) -> bytes | None:
    """Makes a master key and its first holder, where the URL or a person gave a secret.

    The holder's file is durable when it returns, but for its name.
    """
    if secret is None:
        if place.key_source is None:
            return None
        secret = secret_from(place.key_source)
    master_key = os.urandom(KEY_BYTES)
    label = kind_name(secret.kind)
    add_holder(place.path, backup_id, master_key, secret, label)
    return master_key


def add_holder(path: str, backup_id: bytes, master_key: bytes, secret: Secret, label: str) -> None:
    """Wraps the master key for one more holder; durable with its name when it returns.

    Raises:
        AlreadyExists: there is a holder of this name.
        BadUrl: the name is none.
    """
    if _LABEL.fullmatch(label) is None or len(label) > LABEL_BYTES:
        raise BadUrl(f"{label!r} is no name for a key: up to 32 letters, digits, dots and dashes.")
    created_ms = time.time_ns() // 1_000_000
    salt = os.urandom(v2.SALT_BYTES)
    data = pack_holder(secret.kind, label, backup_id, created_ms, salt, secret.content, master_key)
    objects = LocalObjects(path, building=_ADDING)
    if objects.status(_PREFIX + label) is not None:
        raise _taken(label)
    try:
        objects.put_new(_PREFIX + label, "key", [data], op="publish key")
    except AlreadyExists:  # at this moment
        raise _taken(label) from None


def _taken(label: str) -> AlreadyExists:
    return AlreadyExists(f"There is a key {label} already; nothing was changed.")


def holders(path: str, backup_id: bytes) -> list[Holder]:
    """All holders of the backup.

    Raises:
        Damaged: a bit of a holder's file was changed, or it belongs to another backup.
    """
    found = []
    objects = LocalObjects(path, building=_ADDING)
    for name in objects.list(_PREFIX):
        try:
            holder = unpack_holder(objects.get(name, 0, FILE_BYTES + 1))
            if holder.backup_id != backup_id or holder.label != name[len(_PREFIX) :]:
                raise v2.Malformed("the key of another backup")
        except v2.Malformed as error:
            raise Damaged(
                f"{objects.where(name)} is damaged: it holds {error}. If another key unlocks the "
                "backup, move this one away and add it anew."
            ) from None
        found.append(holder)
    return found


def remove_holder(path: str, backup_id: bytes, label: str) -> None:
    """Takes a holder's key away; durable when it returns.

    Who copied its file before can still unlock the backup: for a new master key, copy the backup.

    Raises:
        NotFound: there is no such holder.
        Locked: it is the last one, without which nobody could read the backup.
    """
    with directories.locked(path, op="remove key"):  # two at once would remove the last two
        labels = [holder.label for holder in holders(path, backup_id)]
        if not labels:
            raise Locked("This backup is not encrypted, so it has no keys.")
        if label not in labels:
            raise NotFound(f"There is no key {label!r}; there are: {', '.join(labels)}.")
        if len(labels) == 1:
            raise Locked(f"{label} is the only key, and nobody could read the backup without it.")
        LocalObjects(path).delete(_PREFIX + label, op="remove key")
