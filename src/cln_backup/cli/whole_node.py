"""`backup-cli restore --node`: a whole node back, from a backup alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from cln_backup.backends import place_at, redacted
from cln_backup.cli.installation import plugin_path
from cln_backup.cli.presentation import (
    age,
    changes,
    progress,
    show_notices,
    size,
    tell,
    warn_of_foreign_keys,
)
from cln_backup.cli.secrets import ask_passphrase, confirm
from cln_backup.cli.terminal import show_table
from cln_backup.model.continuity import STARTED_WELL
from cln_backup.model.errors import Discontinuity, NodeRunning
from cln_backup.model.node_files import TOR

if TYPE_CHECKING:
    from cln_backup.cli.presentation import Fields
    from cln_backup.operations.keyring import Secret
    from cln_backup.operations.whole_node import Plan, RestoredNode

_SOURCES = {
    "directory": "there already",
    "given": "the one that was given",
    "backup": "the one in the backup",
}


def restore_whole_node(
    url: str,
    directory: str,
    *,
    dry_run: bool,
    old_node_is_off: bool,
    original: bool,
    as_json: bool,
    secret: Secret | None,
) -> Fields:
    """Plans the restore, asks what only the operator knows, and does it."""
    from cln_backup.operations.whole_node import plan, restore_node, unlocking

    secret, own = unlocking(url, secret)
    with place_at(url).open_reader(secret=secret, on_event=tell) as reader:
        planned = plan(reader, url, directory, own, _passphrase_of_hsm_secret)
    if not as_json:
        _show(planned)
    if dry_run:
        if not as_json:
            click.echo("This was a dry run: nothing was changed.")
        return _fields_of(planned) | {"dry_run": True}
    _require_old_node_is_off(sure=old_node_is_off)
    _require_original(planned, sure=original)
    done = restore_node(
        url, planned, lambda of: progress(of, as_json=as_json), secret=secret, on_event=tell
    )
    left = _left(done, url)
    if not as_json:
        _tell(done, left)
    database = done.database._asdict()
    del database["notices"]
    fields = _fields_of(planned) | database
    return fields | {
        "dry_run": False,
        "node_id": done.node_id,
        "key_slot": done.key_slot,
        "notices": [*planned.notices, *done.database.notices],
        "left": left,
    }


def _passphrase_of_hsm_secret() -> str:
    return ask_passphrase("Passphrase of hsm_secret")


def _show(planned: Plan) -> None:
    from cln_backup.operations.keyring import without_keys

    stored = planned.stored_at
    when = "" if stored is None else f", stored {age(stored)}"
    files = [f"{file.path}{' (there already)' if file.is_there else ''}" for file in planned.files]
    show_table(
        ("network directory", planned.directory),
        ("node", planned.node_id or "the database will tell"),
        ("database", planned.database),
        ("data version", f"{planned.version}{when}"),
        ("hsm_secret", _secret_of(planned)),
        *[("file" if not number else "", file) for number, file in enumerate(files)],
        *([("key file", planned.key_file)] if planned.key_file is not None else []),
        ("backup.lock", f"names {redacted(without_keys(planned.settings.backend_url))}"),
    )
    show_notices(list(planned.notices))
    for file in planned.files:
        if file.taken is not None:
            click.echo(
                f"Note: {file.taken} exists and stays as it is; the one in the backup becomes "
                f"{file.path}."
            )


def _secret_of(planned: Plan) -> str:
    secret = planned.secret
    if secret is None:
        return "not at hand"
    of = "of this node" if planned.node_id is not None else f"of the node {secret.node_id}"
    return f"{_SOURCES[secret.source]}, {of}"


def _require_old_node_is_off(*, sure: bool) -> None:
    if sure:
        return
    question = (
        "TWO RUNNING COPIES OF A NODE LOSE ITS FUNDS. Is the old node off, and can never start "
        "again? (yes or no)"
    )
    if not confirm(question, "--old-node-is-off"):
        raise NodeRunning(
            "The old node may still run. Nothing was changed. Switch its machine off or disable "
            "its service; then run this again."
        )


def _require_original(planned: Plan, *, sure: bool) -> None:
    if sure or planned.is_original:
        return
    stored = planned.stored_at
    when = "" if stored is None else f", stored {age(stored)}"
    question = (
        "A NODE THAT STARTS ON AN OLD STATE LOSES ITS FUNDS. Did the node write to this very "
        "backup until its end, so that it is not an older copy? Its last change is data version "
        f"{planned.version}{when}. (yes or no)"
    )
    if not confirm(question, "--original"):
        raise Discontinuity(
            "The backup may be an older copy. Nothing was changed. Find the backup that the node "
            "wrote to until its end."
        )


def _tell(done: RestoredNode, left: list[str]) -> None:
    database = done.database
    click.echo(
        f"Restored {database.path} at data version {database.version}: "
        f"{changes(database.version_count)}, {size(database.size_bytes)}. Integrity checks passed."
    )
    warn_of_foreign_keys(database.foreign_key_faults)
    show_notices(list(database.notices))
    if done.plan.secret is not None and done.node_id is not None:
        click.echo(f"hsm_secret belongs to this database: both are of the node {done.node_id}.")
    if done.key_slot is not None:
        click.echo(f"The key file of this machine unlocks the backup, as key slot {done.key_slot}.")
    click.echo("Left to do:")
    for number, step in enumerate(left, 1):
        click.echo(f"{number}. {step}")


def _left(done: RestoredNode, url: str) -> list[str]:
    """The steps that remain before the node runs here."""
    from cln_backup.operations.keyring import without_keys

    planned, steps = done.plan, []
    if planned.secret is None:
        steps.append(
            f"Put hsm_secret into {planned.directory}, mode 0400. lightningd refuses one of "
            "another node."
        )
    elif done.node_id is None:
        steps.append(
            "The database names no node, so hsm_secret could not be checked. lightningd refuses "
            "one of another node."
        )
    moved = [file.path for file in planned.files if file.taken is not None]
    if moved:
        steps.append(f"Compare with the files that were there: {', '.join(moved)}")
    if any(file.file.place == TOR for file in planned.files):
        where = planned.settings.files.tor_dir or "the HiddenServiceDir in torrc"
        steps.append(
            f"Move the files in {os.path.join(planned.directory, 'tor-service')} to {where}, give "
            "them to Tor's user, and restart Tor."
        )
    missing = _missing_paths(planned)
    if missing:
        steps.append(f"The configuration names files that are not here: {', '.join(missing)}")
    line = f"important-plugin={plugin_path()}"
    if not any(line in text.splitlines() for text in _configurations(planned)):
        steps.append(f"Put this line into lightningd's configuration: {line}")
    steps.append(f"Start Core-Lightning, and look for this in its log: {STARTED_WELL}")
    if done.key_slot is not None:
        steps.append(
            "When the node runs well, remove the key slot of the old machine: backup-cli key list "
            f"{without_keys(redacted(url))}"
        )
    return steps


def _configurations(planned: Plan) -> list[str]:
    return [
        file.file.content.decode("utf-8", "replace")
        for file in planned.files
        if file.file.path.rpartition("/")[2].startswith("config")
    ]


def _missing_paths(planned: Plan) -> list[str]:
    """Absolute paths of plugins in the restored configuration that do not exist here."""
    found = []
    for text in _configurations(planned):
        for line in text.splitlines():
            name, _, value = line.partition("=")
            if name.strip() in ("plugin", "important-plugin") and value.startswith("/"):
                found.append(value.strip())
    return [path for path in dict.fromkeys(found) if not os.path.exists(path)]


def _fields_of(planned: Plan) -> Fields:
    secret = planned.secret
    return {
        "directory": planned.directory,
        "path": planned.database,
        "version": planned.version,
        "node_id": planned.node_id,
        "files": [file.path for file in planned.files],
        "kept_apart": [file.path for file in planned.files if file.taken is not None],
        "hsm_secret": None if secret is None else secret.source,
        "key_file": planned.key_file,
        "backend_url": redacted(planned.settings.backend_url),
        "notices": list(planned.notices),
    }
