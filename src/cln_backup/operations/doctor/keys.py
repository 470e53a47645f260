"""The keys of an encrypted backup, and the node's own secret."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.model.health import Finding, Level
from cln_backup.storage import disks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cln_backup.backends.inventory import Key

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class KeyFile(NamedTuple):
    """The file that the node unlocks its backup with.

    Attributes:
        mode: its permissions; `None` if it is missing.
        beside: whether it is in the backup, or on its disk and not on the node's.
    """

    path: str
    mode: int | None
    beside: bool = False


class Keys(NamedTuple):
    """How a backup is encrypted.

    Attributes:
        slots: its key slots; empty if it is not encrypted.
        leaves: whether it is on another machine.
        file: the key that its URL names.
        readable: the files with a token or a password that its URL names and others can read.
    """

    slots: tuple[Key, ...]
    leaves: bool
    file: KeyFile | None = None
    readable: tuple[str, ...] = ()


class HsmSecret(NamedTuple):
    """The node's `hsm_secret`.

    Attributes:
        mode: its permissions; `None` if it is missing.
        has_database: whether the node has a database already.
        copied_at: when the operator said that it is copied, in seconds since 1970.
        in_backup: whether it is kept in a backup that can be unlocked without it and this machine.
    """

    path: str
    mode: int | None
    has_database: bool
    copied_at: float | None
    in_backup: bool = False


def key_file(path: str, storage_dir: str | None, directory: str | None) -> KeyFile:
    """Looks at a key file. Raises `OSError` if this user may not."""
    beside = False
    if storage_dir is not None and os.path.exists(path):
        inside = os.path.commonpath((os.path.realpath(path), os.path.realpath(storage_dir)))
        beside = inside == os.path.realpath(storage_dir)
        if directory is not None and not disks.same_disk(directory, storage_dir):
            beside = beside or disks.same_disk(path, storage_dir)
    return KeyFile(path, _mode(path), beside)


def hsm_secret(
    directory: str, database: str | None, copied_at: float | None, *, in_backup: bool
) -> HsmSecret:
    """Looks at the node's secret. Raises `OSError` if this user may not."""
    path = os.path.join(directory, "hsm_secret")
    return HsmSecret(path, _mode(path), database is not None, copied_at, in_backup)


def is_readable(path: str) -> bool:
    """Whether other users can read a file; not if it is missing. Raises `OSError`."""
    return bool((_mode(path) or 0) & _OTHERS)


def _mode(path: str) -> int | None:
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None


def judge_keys(keys: Keys) -> Iterator[Finding]:
    """The findings about the encryption of a backup."""
    if not keys.slots and keys.leaves:
        yield Finding(
            "not-encrypted",
            Level.WARNING,
            "The backup is on another machine and not encrypted: its operator can read all that "
            "the node's database has.",
            "Make an encrypted copy there with `backup-cli copy` (a key file in the new URL), and "
            "name it in backup.lock, unless that machine is yours.",
        )
    if keys.slots:
        yield _of_slots(keys.slots)
    if keys.file is not None:
        yield from _of_file(keys.file)
    if keys.readable:
        yield Finding(
            "secret-readable",
            Level.WARNING,
            f"Other users of this machine can read {', '.join(keys.readable)}, which gives access "
            "to the backup.",
            f"chmod 600 {' '.join(keys.readable)}",
        )


def _of_slots(slots: Sequence[Key]) -> Finding:
    shown = ", ".join(key.label for key in slots)
    if all(key.kind == "key-file" for key in slots):
        return Finding(
            "only-key-file",
            Level.BAD,
            f"Only a key file unlocks the backup ({shown}): if it is lost with this machine, the "
            "backup cannot be read.",
            "Let the node's hsm_secret or a passphrase unlock it too: `backup-cli key add "
            "--new-hsm-secret PATH URL`, or --new-passphrase.",
        )
    return Finding(
        "only-key-file",
        Level.GOOD,
        f"The backup can be unlocked without this machine's key file ({shown}).",
    )


def _of_file(file: KeyFile) -> Iterator[Finding]:
    if file.mode is None:
        yield Finding(
            "key-file-missing",
            Level.BAD,
            f"The key file {file.path} is missing: the next start of the node halts.",
            "Put a copy of it back, or make another one with another key of the backup: "
            "`backup-cli key add --new-key-file PATH URL`. Do this before the node stops.",
        )
        return
    if file.mode & _OTHERS:
        yield Finding(
            "key-file-readable",
            Level.WARNING,
            f"Other users of this machine can read the key file {file.path} (mode "
            f"{file.mode:04o}).",
            f"chmod 600 {file.path}",
        )
    if file.beside:
        yield Finding(
            "key-file-beside-backup",
            Level.WARNING,
            f"The key file {file.path} is with the backup: the encryption is useless against "
            "anyone who gets that disk.",
            "Move it to the node's disk, and name its new path in backup.lock.",
        )
    if not file.beside and not file.mode & _OTHERS:
        yield Finding("key-file-readable", Level.GOOD, "Only its owner can read the key file.")


def judge_hsm_secret(secret: HsmSecret) -> Iterator[Finding]:
    """The findings about the node's secret."""
    if secret.mode is None:
        if secret.has_database:
            yield Finding(
                "hsm-secret-missing",
                Level.BAD,
                f"{secret.path} is missing: without it, the database and its backup are useless.",
                "Do not stop the node if it runs. Find a copy, or the words on paper.",
            )
        return
    if secret.mode & _OTHERS:
        yield Finding(
            "hsm-secret-readable",
            Level.WARNING,
            f"Other users of this machine can read {secret.path} (mode {secret.mode:04o}), which "
            "is all that is needed to take the funds.",
            f"chmod 400 {secret.path}",
        )
    if secret.in_backup:
        yield Finding(
            "hsm-secret-not-copied",
            Level.GOOD,
            "hsm_secret is kept in the encrypted backup, which a passphrase unlocks.",
        )
    elif secret.copied_at is not None:
        text = "You have said that hsm_secret is copied."
        yield Finding("hsm-secret-not-copied", Level.GOOD, text)
    else:
        yield Finding(
            "hsm-secret-not-copied",
            Level.WARNING,
            "hsm_secret is not in the backup, or cannot be had from it without itself; a restored "
            "database is useless without it. Whether it is copied is unknown here.",
            "Copy it once to a separate place, or write down its words. Then run: backup-cli "
            f"doctor --hsm-secret-is-copied --lightning-dir {os.path.dirname(secret.path)}",
        )
