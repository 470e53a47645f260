"""`backup-cli rollforward`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cln_backup.backends import place_at
from cln_backup.backends.ticket import size_of
from cln_backup.cli.presentation import changes, progress, tell
from cln_backup.node.settings import read_settings

if TYPE_CHECKING:
    from cln_backup.cli.presentation import Fields
    from cln_backup.cli.secrets import Command
    from cln_backup.operations.keyring import Secret


def register(command: Command) -> None:
    """Adds the command to the others; `command` is the decorator that makes one."""

    @command("backup-cli rollforward --lightning-dir ~/.lightning/bitcoin")
    @click.option(
        "--lightning-dir",
        type=click.Path(file_okay=False),
        required=True,
        help="The node's network directory, such as ~/.lightning/bitcoin.",
    )
    @click.option(
        "--scratch-dir",
        type=click.Path(file_okay=False),
        metavar="DIR",
        help="Directory where the backup is replayed for the comparison. By default beside the "
        "database.",
    )
    def rollforward(
        lightning_dir: str, scratch_dir: str | None, *, as_json: bool, secret: Secret | None
    ) -> Fields:
        """Bring a database that lost its last changes with the power forward to its backup.

        The node must be stopped. The database as found is kept in a directory beside it. The result
        is compared with the backup before it is committed. The plugin does all this by itself after
        a loss of power.
        """
        from cln_backup.operations.rollforward import roll_forward

        place = place_at(read_settings(lightning_dir).backend_url)
        with place.open_reader(secret=secret) as reader:
            of = size_of(reader)
        with progress(of, as_json=as_json) as step:
            done = roll_forward(
                lightning_dir, secret=secret, progress=step, on_event=tell, scratch_dir=scratch_dir
            )
        if as_json:
            pass
        elif done.changes == 0:
            click.echo(
                f"Nothing to do: {done.database} is at data version {done.version}, as the backup."
            )
            if done.kept is not None:
                click.echo(
                    "An earlier roll forward was interrupted after it had brought the database "
                    f"there. The database as it was before is kept in {done.kept}."
                )
        else:
            click.echo(
                f"Rolled {done.database} forward from data version {done.version_before} to "
                f"{done.version}: {changes(done.changes)}. Its content is the backup's. You can "
                f"start Core-Lightning. The database as found is kept in {done.kept}; delete it "
                "once the node has run well."
            )
        return done._asdict()
