"""Files in the node's network directory: `backup.lock`, and `backup.state` of the plugin.

`backup.lock` is as the community plugin has it, `{"backend_url": "…"}`; here it may also name the
wallet's path. `backup.state` has the boot of the machine, and the mount of the database's file
system, in which the plugin last answered.
"""

from __future__ import annotations

import contextlib
import json
import os
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from cln_backup.backends import SCHEMES, redacted, url_of
from cln_backup.model.errors import BadSettings, StorageError
from cln_backup.model.migration import RestorePoint, is_digest
from cln_backup.model.node_files import Wanted
from cln_backup.storage import fsio

LOCK_NAME = "backup.lock"
STATE_NAME = "backup.state"
_Choice = TypeVar("_Choice", bound=Enum)
_MAX_BYTES = 1 << 16
_MEND = (
    "Correct it, or move it away: backup.lock can be rewritten from the backup's URL; without "
    "backup.state, the next start does not assume that a missing change was never committed."
)


class OnGap(Enum):
    """How a start treats a backup that is missing changes."""

    SNAPSHOT = "snapshot"
    HALT = "halt"


class OnPowerLoss(Enum):
    """How a start treats a database that may have lost changes with the power or its disk."""

    ROLL_FORWARD = "rollforward"
    HALT = "halt"


class Settings(NamedTuple):
    """The contents of `backup.lock`.

    Attributes:
        backend_url: where the backup is.
        wallet: the database's path, if it is not `lightningd.sqlite3` in the directory.
        on_gap: what a start does when the backup is missing changes.
        on_power_loss: what a start does when the database may have lost changes that the backup
            has.
        files: the node's small files that are kept beside the backup.
    """

    backend_url: str
    wallet: str | None = None
    on_gap: OnGap = OnGap.SNAPSHOT
    on_power_loss: OnPowerLoss = OnPowerLoss.ROLL_FORWARD
    files: Wanted = Wanted()

    def packed(self) -> bytes:
        """The content of the file; what is as by default is left out."""
        fields: dict[str, object] = {"backend_url": self.backend_url}
        if self.wallet is not None:
            fields["wallet"] = self.wallet
        if self.on_gap is not OnGap.SNAPSHOT:
            fields["on_gap"] = self.on_gap.value
        if self.on_power_loss is not OnPowerLoss.ROLL_FORWARD:
            fields["on_power_loss"] = self.on_power_loss.value
        if self.files.keep is not None:
            fields["node_files"] = self.files.keep
        if self.files.hsm_secret:
            fields["node_files_hsm_secret"] = True
        if self.files.tor_dir is not None:
            fields["node_files_tor_dir"] = self.files.tor_dir
        return json.dumps(fields).encode() + b"\n"


class Alarm(NamedTuple):
    """Something that the follower found wrong in the backup, for the next start to heal.

    Attributes:
        kind: what is wrong: "replay", "damaged", "integrity" or "content".
        text: for the operator.
        at: when it was found, in seconds since 1970.
    """

    kind: str
    text: str
    at: float

    @property
    def starts_over(self) -> bool:
        """Whether a snapshot heals it only as the start of a new history.

        Damaged bytes stay in the way of every reader.
        """
        return self.kind == "damaged"

    @property
    def keeps_restore_from_ending(self) -> bool:
        """Whether a restore of this backup fails. After "content" it would give other contents."""
        return self.kind != "content"


class State(NamedTuple):
    """The contents of `backup.state`.

    Attributes:
        boot_id: of the boot of the machine in which the last answer was given.
        last_compaction_at: seconds since 1970.
        mount: of the file system of the node's database at that time (`mount_identity`).
        restore_point: the state before a migration that has not been seen to end.
        replica_dir: where the follower keeps its replica; `None` if there is none.
        alarm: what the follower found wrong, until a start has healed it.
        drilled_at: when `backup-cli drill` last ended, in seconds since 1970.
        drill_passed: whether the restored database was the node's.
        drill_restore_s: how long its restore took, in seconds.
        hsm_secret_copied_at: when the operator said that `hsm_secret` is copied to a separate
            place, in seconds since 1970.
    """

    boot_id: str | None = None
    last_compaction_at: float | None = None
    mount: str | None = None
    restore_point: RestorePoint | None = None
    replica_dir: str | None = None
    alarm: Alarm | None = None
    drilled_at: float | None = None
    drill_passed: bool | None = None
    drill_restore_s: float | None = None
    hsm_secret_copied_at: float | None = None


def read_settings(directory: str) -> Settings:
    """Reads `backup.lock` in a network directory.

    Raises:
        BadSettings: it is missing, or cannot be understood.
    """
    path = os.path.join(directory, LOCK_NAME)
    if fsio.kind_at(path, op="read settings") is None:
        where = os.path.abspath(directory)
        where += "" if os.path.isdir(directory) else ", which is not a directory"
        raise BadSettings(
            f"Could not find {LOCK_NAME} in the lightning-dir ({where}). "
            "It says where the backup is, and the node does not run without a backup. "
            "For a new backup, run: backup-cli init --lightning-dir "
            f"{os.path.abspath(directory)} URL. If the node was restored from its backup, write "
            'the file by hand: {"backend_url": "URL"}'
        )
    try:
        fields = _read_object(path)
    except _BarePlace as error:
        raise BadSettings(
            f"{path} contains only a path or a URL. Write it as: "
            f"{json.dumps({'backend_url': redacted(url_of(error.place))})}"
        ) from None
    return _settings_of(path, fields)


def settings_in(content: bytes, path: str) -> Settings:
    """The settings in the content of a `backup.lock`; `path` is for messages.

    Raises:
        BadSettings: it cannot be understood.
    """
    try:
        return _settings_of(path, _object_in(path, content))
    except _BarePlace:
        raise BadSettings(f"{path} contains only a path or a URL.") from None


def _settings_of(path: str, fields: dict[str, Any]) -> Settings:
    url, wallet = fields.get("backend_url"), fields.get("wallet")
    if not isinstance(url, str) or not isinstance(wallet, str | None) or not url or wallet == "":
        raise BadSettings(f'{path} must be of the form {{"backend_url": "file:///the/path"}}.')
    return Settings(
        url,
        wallet,
        _choice(path, fields, "on_gap", OnGap.SNAPSHOT),
        _choice(path, fields, "on_power_loss", OnPowerLoss.ROLL_FORWARD),
        _wanted_files(path, fields),
    )


def _wanted_files(path: str, fields: dict[str, Any]) -> Wanted:
    keep, hsm_secret = fields.get("node_files"), fields.get("node_files_hsm_secret", False)
    tor_dir = fields.get("node_files_tor_dir")
    if not isinstance(keep, bool | None) or not isinstance(hsm_secret, bool):
        raise BadSettings(
            f'"node_files" and "node_files_hsm_secret" in {path} must be true or false.'
        )
    if not isinstance(tor_dir, str | None):
        raise BadSettings(f'"node_files_tor_dir" in {path} must be a path.')
    return Wanted(keep, hsm_secret, tor_dir)


def _choice(path: str, fields: dict[str, Any], name: str, default: _Choice) -> _Choice:
    """The value of a field that allows a few words; the default if it is not there."""
    allowed = type(default)
    try:
        return allowed(fields.get(name, default.value))
    except ValueError:
        words = " or ".join(json.dumps(choice.value) for choice in allowed)
        raise BadSettings(f'"{name}" in {path} must be {words}.') from None


def create_settings(directory: str, settings: Settings) -> None:
    """Writes `backup.lock`; durable when it returns. Raises `AlreadyExists`, `StorageError`."""
    path = os.path.join(directory, LOCK_NAME)
    fsio.write_file(path, settings.packed(), op="write backup.lock", new=True)


def read_state(directory: str) -> State:
    """Reads `backup.state`; an empty state if there is none.

    Raises:
        BadSettings: it cannot be understood.
    """
    path = os.path.join(directory, STATE_NAME)
    if fsio.kind_at(path, op="read settings") is None:
        return State()
    fields = _read_object(path)
    passed = fields.get("drill_passed")
    return State(
        _text(fields, "boot_id"),
        _number(fields, "last_compaction_at"),
        _text(fields, "mount"),
        _restore_point(fields.get("restore_point")),
        _text(fields, "replica_dir"),
        _alarm(fields.get("alarm")),
        _number(fields, "drilled_at"),
        passed if isinstance(passed, bool) else None,
        _number(fields, "drill_restore_s"),
        _number(fields, "hsm_secret_copied_at"),
    )


def _text(fields: dict[str, Any], name: str) -> str | None:
    text = fields.get(name)
    return text if isinstance(text, str) else None


def _number(fields: dict[str, Any], name: str) -> float | None:
    number = fields.get(name)
    return number if isinstance(number, int | float) else None


def _restore_point(fields: object) -> RestorePoint | None:
    if not isinstance(fields, dict):
        return None
    version, changes, at, undo_from = (fields.get(name) for name in RestorePoint._fields[:4])
    if isinstance(version, int) and isinstance(changes, int) and isinstance(at, int | float):
        began = undo_from if isinstance(undo_from, int) else None
        digest = fields.get("digest") if is_digest(fields.get("digest")) else None
        number = fields.get("number") if isinstance(fields.get("number"), int) else None
        return RestorePoint(version, changes, at, began, _text(fields, "url"), number, digest)
    return None


def _alarm(fields: object) -> Alarm | None:
    if not isinstance(fields, dict):
        return None
    kind, text, at = (fields.get(name) for name in Alarm._fields)
    if isinstance(kind, str) and isinstance(text, str) and isinstance(at, int | float):
        return Alarm(kind, text, at)
    return None


def set_state_aside(directory: str) -> str:
    """Renames a `backup.state` that cannot be understood; returns its new path; durable.

    Raises `StorageError`.
    """
    path = os.path.join(directory, STATE_NAME)
    aside = f"{path}.damaged"
    fsio.replace(path, aside, op="set backup.state aside")
    return aside


def write_state(directory: str, state: State) -> None:
    """Writes `backup.state`; durable when it returns. Raises `StorageError`.

    Fields that this release does not know stay as they are.
    """
    path = os.path.join(directory, STATE_NAME)
    fields: dict[str, Any] = {}
    with contextlib.suppress(StorageError, BadSettings, _BarePlace):  # none, or broken
        fields = _read_object(path)
    fields |= state._asdict()
    for name, value in (("restore_point", state.restore_point), ("alarm", state.alarm)):
        fields[name] = None if value is None else value._asdict()
    fsio.write_file(path, json.dumps(fields).encode() + b"\n", op="write backup.state")


def _read_object(path: str) -> dict[str, Any]:
    fd = fsio.open_existing(path, writable=False, op="read settings")
    try:
        content = fsio.read_at(fd, _MAX_BYTES, 0, op="read settings")
    finally:
        os.close(fd)
    return _object_in(path, content)


def _object_in(path: str, content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        _refuse_bare_place(content.decode("utf-8", "replace"))
        raise BadSettings(f"{path} is not valid JSON ({error}). {_MEND}") from None
    if isinstance(fields, str):
        _refuse_bare_place(fields)
    if not isinstance(fields, dict):
        raise BadSettings(f"{path} is not a JSON object. {_MEND}")
    return fields


class _BarePlace(Exception):
    """The file contains only a path or a URL, not JSON."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place


def _refuse_bare_place(text: str) -> None:
    place = text.strip()
    known = place.startswith(("/", "~", "./", "../")) or place.partition(":")[0] in SCHEMES
    if known and place.isprintable():
        raise _BarePlace(place)
