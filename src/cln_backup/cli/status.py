"""`backup-cli status`: the state of a backup, and what the node's directory says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cln_backup.backends import place_at, redacted
from cln_backup.cli.parameters import optional_url, url_or
from cln_backup.cli.presentation import (
    Noticing,
    age,
    moment,
    report,
    rows_of,
    rows_of_proof,
    show_notices,
    show_table,
    size,
)
from cln_backup.model.errors import Locked

if TYPE_CHECKING:
    from cln_backup.cli.presentation import Fields
    from cln_backup.cli.secrets import Command
    from cln_backup.operations.keyring import Secret
    from cln_backup.operations.node_state import NodeState


def register(command: Command) -> None:
    """Adds the command to the others; `command` is the decorator that makes one."""

    @command(
        "backup-cli status file:///mnt/backup/node.bkp\n"
        "backup-cli status --lightning-dir ~/.lightning/bitcoin"
    )
    @click.option(
        "--lightning-dir",
        type=click.Path(file_okay=False),
        help="The node's network directory: also show how far the follower has proven the "
        "backup, an alarm, and the last drill. Without URL, the backup in its backup.lock.",
    )
    @optional_url
    def status(
        url: str | None, lightning_dir: str | None, *, as_json: bool, secret: Secret | None
    ) -> Fields:
        """Show the state of a backup. A running node may write to it meanwhile.

        For an encrypted backup that is not unlocked, shows what can be read without a key.
        """
        from cln_backup.operations import history
        from cln_backup.operations.node_state import node_state

        url = url_or(url, lightning_dir, "--lightning-dir")
        node = None if lightning_dir is None else node_state(lightning_dir)
        held = history.holdings(url)
        noticed = Noticing()
        try:
            with place_at(url).open_reader(secret=secret, on_event=noticed) as reader:
                found = history.status(reader)
        except Locked as error:
            if not as_json:
                show_table(("backup", redacted(url)), *rows_of(held))
            report(error, as_json=as_json, known=held._asdict())
            raise click.exceptions.Exit(error.exit_code) from None
        if node is not None and node.proven_at is not None:
            version, at = node.proven_version, node.proven_at
            found = found._replace(proven_version=version, proven_at=at)
        if not as_json:
            changed = found.last_change_at
            show_table(
                ("backup", found.backend_url),
                ("data version", str(found.version)),
                ("changes", str(found.version_count)),
                ("size", size(found.backupsize)),
                ("last change", found.head or "none: the backup is empty"),
                (
                    "file written" if found.dated_by_file else "stored",
                    "unknown" if changed is None else f"{moment(changed)} ({age(changed)})",
                ),
                ("node", found.node_id or "unknown"),
                *([("durable", found.durability)] if found.durability else []),
                *rows_of_proof(found),
                *_row_of_files(found.node_files_at),
                *_rows_of_node(node),
                *rows_of(held),
            )
        show_notices(noticed.texts)
        fields = found._asdict() | held._asdict() | {"notices": noticed.texts}
        return fields if node is None else fields | node.fields()


def _row_of_files(at: float | None) -> list[tuple[str, str]]:
    return [] if at is None else [("node files", f"kept {moment(at)} ({age(at)})")]


def _rows_of_node(node: NodeState | None) -> list[tuple[str, str]]:
    rows = []
    if node is not None and node.alarm is not None:
        rows.append(("ALARM", f"{moment(node.alarm.at)} ({age(node.alarm.at)}): {node.alarm.text}"))
    if node is not None and node.replica_dir is not None:
        rows.append(("replica", node.replica_dir))
    if node is not None and node.drilled_at is not None:
        how = "passed" if node.drill_passed else "FAILED"
        rows.append(("last drill", f"{how} {moment(node.drilled_at)} ({age(node.drilled_at)})"))
    return rows
