"""`backup-cli undo-migration`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cln_backup.backends import place_at
from cln_backup.backends.ticket import size_of
from cln_backup.cli.presentation import progress, size, tell, warn_of_foreign_keys
from cln_backup.node.settings import read_settings

if TYPE_CHECKING:
    from cln_backup.cli.presentation import Fields
    from cln_backup.cli.secrets import Command
    from cln_backup.operations.keyring import Secret


def register(command: Command) -> None:
    """Adds the command to the others; `command` is the decorator that makes one."""

    @command("backup-cli undo-migration --lightning-dir ~/.lightning/bitcoin")
    @click.option(
        "--lightning-dir",
        type=click.Path(file_okay=False),
        required=True,
        help="The node's network directory, such as ~/.lightning/bitcoin.",
    )
    def undo_migration(lightning_dir: str, *, as_json: bool, secret: Secret | None) -> Fields:
        """Go back to before a migration of the database that was interrupted.

        Only for a node whose new release has never been up; otherwise it refuses. The node must be
        stopped. The database as found and the earlier history of the backup are kept; the backup
        continues from the database before the migration. Can be run again if it was interrupted.
        """
        from cln_backup.operations.undo_migration import undo_migration as undo

        place = place_at(read_settings(lightning_dir).backend_url)
        with place.open_reader(secret=secret) as reader:
            of = size_of(reader)
        with progress(of, as_json=as_json) as step:
            done = undo(lightning_dir, secret=secret, progress=step, on_event=tell)
        if not as_json:
            click.echo(
                f"Went back from data version {done.version_before} to {done.version}, before the "
                f"migration: {done.database} ({size(done.size_bytes)}). Integrity checks passed."
            )
            warn_of_foreign_keys(done.foreign_key_faults)
            if done.kept is not None:
                click.echo(f"The database as found is kept in {done.kept}.")
            if done.earlier_history is not None:
                click.echo(f"The earlier history of the backup is kept in {done.earlier_history}.")
            click.echo(
                "You can start the new release of Core-Lightning again, or the old one. Delete the "
                "kept files once the node has run well."
            )
        return done._asdict()
