"""`backup-cli status`: the state of a backup, and what the node's directory says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cln_backup.backends import place_at, redacted
from cln_backup.cli.parameters import with_url_as
from cln_backup.cli.presentation import (
    Noticing,
    report,
    show_notices,
    size,
    when,
)
from cln_backup.cli.terminal import show_table
from cln_backup.model.errors import Locked
from cln_backup.model.health import Level

if TYPE_CHECKING:
    from cln_backup.cli.presentation import Fields
    from cln_backup.cli.secrets import Command
    from cln_backup.cli.terminal import Row
    from cln_backup.operations.history import Holdings, Status
    from cln_backup.operations.keyring import Secret
    from cln_backup.operations.node_state import NodeState


def register(command: Command) -> None:
    """Adds the command to the others; `command` is the decorator that makes one."""

    @command(
        "backup-cli status\n"
        "backup-cli status file:///mnt/backup/node.bkp\n"
        "backup-cli status --lightning-dir ~/.lightning/bitcoin"
    )
    @with_url_as(
        help="The node's network directory: also show how far the follower has proven the "
        "backup, an alarm, and the last drill. Without URL, the backup in its backup.lock. Without "
        "both, the only node on this machine.",
        passes_directory=True,
    )
    def status(
        url: str, lightning_dir: str | None, *, as_json: bool, secret: Secret | None
    ) -> Fields:
        """Show the state of a backup. A running node may write to it meanwhile.

        For an encrypted backup that is not unlocked, shows what can be read without a key.
        """
        from cln_backup.operations import history
        from cln_backup.operations.node_state import node_state

        node = None if lightning_dir is None else node_state(lightning_dir)
        held = history.holdings(url)
        noticed = Noticing()
        try:
            with place_at(url).open_reader(secret=secret, on_event=noticed) as reader:
                found = history.status(reader)
        except Locked as error:
            if not as_json:
                show_table(("backup", redacted(url)), *_rows_of(held))
            report(error, as_json=as_json, known=held._asdict())
            raise click.exceptions.Exit(error.exit_code) from None
        if node is not None and node.proven_at is not None:
            version, at = node.proven_version, node.proven_at
            found = found._replace(proven_version=version, proven_at=at)
        if not as_json:
            changed = found.last_change_at
            show_table(
                *_alarm(node),
                ("backup", found.backend_url),
                ("data version", str(found.version)),
                ("changes", f"{found.version_count:,}"),
                ("size", size(found.backupsize)),
                ("last change", found.head or "none: the backup is empty"),
                (
                    "file written" if found.dated_by_file else "stored",
                    "unknown" if changed is None else when(changed),
                ),
                ("node", found.node_id or "unknown"),
                *([("durable", found.durability)] if found.durability else []),
                *_rows_of_proof(found),
                *_row_of_files(found.node_files_at),
                *_rows_of_node(node),
                *_rows_of(held),
            )
        show_notices(noticed.texts)
        fields = found._asdict() | held._asdict() | {"notices": noticed.texts}
        return fields if node is None else fields | node.fields()


def _row_of_files(at: float | None) -> list[Row]:
    return [] if at is None else [("node files", f"kept {when(at)}")]


def _alarm(node: NodeState | None) -> list[Row]:
    """First of all: that the backup does not restore the node."""
    if node is None or node.alarm is None:
        return []
    return [("ALARM", f"{when(node.alarm.at)}: {node.alarm.text}", Level.BAD)]


def _rows_of_proof(found: Status) -> list[Row]:
    """How far the backup was replayed; nothing if unknown."""
    if found.proven_version is None or found.proven_at is None:
        return []
    return [("proven", f"up to data version {found.proven_version}, {when(found.proven_at)}")]


def _rows_of_node(node: NodeState | None) -> list[Row]:
    rows: list[Row] = []
    if node is not None and node.replica_dir is not None:
        rows.append(("replica", node.replica_dir))
    if node is not None and node.drilled_at is not None:
        at = when(node.drilled_at)
        passed = ("last drill", f"passed {at}", Level.GOOD)
        rows.append(passed if node.drill_passed else ("last drill", f"FAILED {at}", Level.BAD))
    return rows


def _rows_of(held: Holdings) -> list[Row]:
    """The parts of a backup; unknown ones are left out."""
    rows: list[Row] = []
    if held.encrypted is not None:
        rows.append(("encryption", held.cipher or "none"))
    if held.encrypted:
        slots = ", ".join(
            str(key["label"]) if key["label"] == key["kind"] else f"{key['label']} ({key['kind']})"
            for key in held.keys or ()
        )
        none = ("key slots", "none: the backup cannot be unlocked", Level.BAD)
        rows.append(("key slots", slots) if slots else none)
    if held.generations is not None and held.oldest_generation_at is not None:
        which = "" if held.generations == 1 else "the oldest "
        made = f"{which}made {when(held.oldest_generation_at)}"
        rows.append(("generations", f"{held.generations}, {made}"))
    if held.space_bytes is not None:
        rows.append(("space used", f"{size(held.space_bytes)} of the disk"))
    return rows
