"""The JSON that each command prints with `--json`, as types, and their JSON Schema (2020-12).

The fields' meaning is in docs/cli.md. A field is never renamed, and its type never changes; there
may be more of them later. Fields with the default `UNSET` may be missing.
"""

from __future__ import annotations

import inspect
from typing import Any, Final, Literal

from msgspec import UNSET, Struct, UnsetType
from msgspec.json import schema_components

from cln_backup.model import errors
from cln_backup.model.errors import BackupError

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_Kind = Literal["transaction", "rider", "snapshot"]
_Level = Literal["good", "warning", "bad"]


class Error(Struct):
    """Why a command failed."""

    type: str
    message: str
    offset_bytes: int | UnsetType = UNSET
    good_version: int | UnsetType = UNSET


class Init(Struct):
    """A new backup."""

    backend_url: str
    database: str | None
    version: int
    snapshot_bytes: int
    same_disk: bool
    lacks: list[str]
    keys: list[str]
    configuration_line: str
    log_phrase: str
    node_files: list[str] | None
    node_files_notices: list[str]


class Snapshot(Struct):
    """A snapshot that was appended."""

    database: str
    version: int
    version_before: int
    snapshot_bytes: int
    same_disk: bool


class Restore(Struct):
    """A database that was restored."""

    path: str
    version: int
    version_count: int
    size_bytes: int
    foreign_key_faults: int
    notices: list[str]


class NodePlan(Struct):
    """A whole node that would be restored, with `--node --dry-run`."""

    directory: str
    path: str
    version: int
    node_id: str | None
    files: list[str]
    kept_apart: list[str]
    hsm_secret: Literal["directory", "given", "backup"] | None
    key_file: str | None
    backend_url: str
    notices: list[str]
    dry_run: bool


class RestoredNode(NodePlan):
    """A whole node that was restored, with `--node`."""

    version_count: int
    size_bytes: int
    foreign_key_faults: int
    key_slot: str | None
    left: list[str]


class Key(Struct):
    """A key slot."""

    label: str
    kind: str
    created_at: float


class Alarm(Struct):
    """A fault that the follower found in the backup."""

    kind: str
    text: str
    at: float


class Status(Struct):
    """The state of a backup, and of its node if that is known."""

    backend_url: str
    version: int
    version_count: int
    backupsize: int
    head: _Kind | None
    last_change_at: float | None
    dated_by_file: bool
    node_id: str | None
    proven_version: int | None
    proven_at: float | None
    durability: str | None
    node_files_at: float | None
    encrypted: bool | None
    cipher: str | None
    keys: list[Key] | None
    generations: int | None
    oldest_generation_at: float | None
    space_bytes: int | None
    notices: list[str]
    replica_dir: str | UnsetType | None = UNSET
    alarm: Alarm | UnsetType | None = UNSET
    drilled_at: float | UnsetType | None = UNSET
    drill_passed: bool | UnsetType | None = UNSET


class Line(Struct):
    """One change; one object a line."""

    version: int
    kind: _Kind
    size_bytes: int
    statements: int
    tables: list[str]
    stored_at: float | None
    dropped: Literal[True] | UnsetType = UNSET


class Healed(Struct):
    """Changes that a later snapshot has made up for."""

    good_version: int
    healed_version: int
    changes: int


class Verify(Struct):
    """How far a backup is good; the last fields only after a comparison."""

    version: int
    version_count: int
    replayed: bool
    foreign_key_faults: int
    healed: list[Healed]
    good: bool
    notices: list[str]
    database: str | UnsetType = UNSET
    compared_version: int | UnsetType = UNSET
    tables: int | UnsetType = UNSET
    not_compared: list[str] | UnsetType = UNSET
    differences: str | UnsetType = UNSET
    indexes: str | UnsetType = UNSET
    content_digest: str | UnsetType = UNSET


class Drill(Struct):
    """A rehearsed restore."""

    version: int
    version_count: int
    size_bytes: int
    foreign_key_faults: int
    restore_s: float
    passed: bool
    database: str
    compared_version: int
    tables: int
    not_compared: list[str]
    differences: str
    indexes: str
    content_digest: str


class Finding(Struct):
    """One thing that the doctor looked at."""

    code: str
    level: _Level
    text: str
    remedy: str


class WriteTest(Struct):
    """How long a node would have waited."""

    changes: int
    size_bytes: int
    p50_ms: float
    p99_ms: float


class Doctor(Struct):
    """The findings of a doctor, and its worst level."""

    level: _Level
    backend_url: str | None
    findings: list[Finding]
    write_test: WriteTest | None


class Size(Struct):
    """The size of a backup."""

    backupsize: int
    version_count: int


class Compact(Struct):
    """The sizes around a compaction."""

    before: Size
    after: Size
    would_be: Size | UnsetType = UNSET


class Copy(Struct):
    """A copy that was read back."""

    version: int
    version_count: int
    digest: str
    keeps_time: bool
    has_node_files: bool | None


class KeyList(Struct):
    """The key slots of a backup."""

    keys: list[Key]


class KeyAdd(Struct):
    """The label of a new key slot."""

    added: str


class KeyRemove(Struct):
    """The label of a key slot that was removed."""

    removed: str


class RollForward(Struct):
    """A database that was rolled forward."""

    database: str
    version_before: int
    version: int
    changes: int
    kept: str | None


class UndoMigration(Struct):
    """A database before its migration."""

    database: str
    version: int
    version_before: int
    kept: str | None
    earlier_history: str | None
    size_bytes: int
    foreign_key_faults: int


class Token(Struct):
    """The hash of a new token."""

    hash: str


class Takeover(Struct):
    """The backup whose writer is refused from now on."""

    backend_url: str


class Standby(Struct):
    """The state of a standby; one object a line."""

    version: int
    head_version: int
    at_head: bool
    at: float
    trouble: Error | None


class Promoted(Struct):
    """A standby that was made the node's, with `--promote`."""

    path: str
    version: int
    changes: int
    size_bytes: int
    foreign_key_faults: int
    node_id: str | None
    lock_made: bool
    lacks_hsm_secret: bool


ANSWERS: Final[dict[str, tuple[type[Struct], ...]]] = {
    "init": (Init,),
    "snapshot": (Snapshot,),
    "restore": (Restore, NodePlan, RestoredNode),
    "status": (Status,),
    "log": (Line,),
    "verify": (Verify,),
    "drill": (Drill,),
    "doctor": (Doctor,),
    "compact": (Compact,),
    "copy": (Copy,),
    "key list": (KeyList,),
    "key add": (KeyAdd,),
    "key remove": (KeyRemove,),
    "rollforward": (RollForward,),
    "undo-migration": (UndoMigration,),
    "token": (Token,),
    "takeover": (Takeover,),
    "standby": (Standby, Promoted),
}
"""The objects that a command may print when it did its work."""

_KNOWN_BESIDE_AN_ERROR: Final = ("status", "verify", "drill")


def schema_of(command: str) -> dict[str, Any]:
    """The schema of the objects that a command prints with `--json`, in success or failure."""
    answers = ANSWERS[command]
    references, parts = schema_components((*answers, Error), ref_template="#/$defs/{name}")
    parts["Error"]["properties"]["type"]["enum"] = _types_of_errors()
    known: dict[str, Any] = {}
    if command in _KNOWN_BESIDE_AN_ERROR:
        known = parts[answers[0].__name__]["properties"]
    parts["Failure"] = {
        "title": "Failure",
        "description": "The command failed. Fields that are known nevertheless are beside error.",
        "type": "object",
        "properties": {"error": references[-1], **known},
        "required": ["error"],
    }
    return {
        "$schema": _DIALECT,
        "title": f"backup-cli {command} --json",
        "anyOf": [*references[:-1], {"$ref": "#/$defs/Failure"}],
        "$defs": parts,
    }


def _types_of_errors() -> list[str]:
    found = (kind for _, kind in inspect.getmembers(errors, inspect.isclass))
    return sorted(kind.__name__ for kind in found if issubclass(kind, BackupError))
