"""`backup-cli restore`: the database, or a whole node, from a backup."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cln_backup.backends import place_at, url_of
from cln_backup.backends.ticket import size_of
from cln_backup.cli.presentation import (
    changes,
    progress,
    show_notices,
    size,
    tell,
    warn,
    warn_of_foreign_keys,
)
from cln_backup.cli.whole_node import restore_whole_node

if TYPE_CHECKING:
    from cln_backup.cli.presentation import Fields
    from cln_backup.cli.secrets import Command
    from cln_backup.operations.keyring import Secret


def register(command: Command) -> None:
    """Adds the command to the others; `command` is the decorator that makes one."""

    @command(
        "backup-cli restore file:///mnt/backup/node.bkp ~/.lightning/bitcoin\n"
        "backup-cli restore file:///mnt/backup/node.bkp /tmp/look.sqlite3\n"
        "backup-cli restore --node ~/.lightning/bitcoin --words dir:///mnt/backup/node"
    )
    @click.option(
        "--node",
        "node_dir",
        type=click.Path(file_okay=False),
        metavar="DIR",
        help="Restore a whole node into its network directory DIR, such as ~/.lightning/bitcoin, "
        "which need not exist: the database, the small files that the backup has, a fresh key "
        "file, hsm_secret if it is at hand, and backup.lock.",
    )
    @click.option(
        "--dry-run", is_flag=True, help="With --node: show what would be done; change nothing."
    )
    @click.option(
        "--old-node-is-off",
        is_flag=True,
        help="With --node: do not ask. The old node is off, and can never start again.",
    )
    @click.option(
        "--original",
        is_flag=True,
        help="With --node: do not ask. The node wrote to this very backup until its end; it is not "
        "an older copy.",
    )
    @click.option(
        "--to",
        type=click.IntRange(min=0),
        metavar="VERSION",
        help="Stop at this data version. Only for a migration that was interrupted and cannot "
        "continue, or if nothing but an incomplete copy is left. In any other case an old database "
        "loses money.",
    )
    @click.argument("url", metavar="URL", callback=lambda _context, _parameter, url: url_of(url))
    @click.argument("destination", metavar="[DESTINATION]", required=False)
    def restore(
        url: str,
        destination: str | None,
        to: int | None,
        node_dir: str | None,
        *,
        dry_run: bool,
        old_node_is_off: bool,
        original: bool,
        as_json: bool,
        secret: Secret | None,
    ) -> Fields:
        """Restore the database, to a file or as lightningd.sqlite3 in a directory.

        Nothing is ever overwritten. The database is built beside its destination, checked, and
        synced; only then it gets its name.

        With --node, restore a whole node: see that option.
        """
        if node_dir is not None:
            if destination is not None or to is not None:
                raise click.UsageError("--node takes neither DESTINATION nor --to.")
            return restore_whole_node(
                url,
                node_dir,
                dry_run=dry_run,
                old_node_is_off=old_node_is_off,
                original=original,
                as_json=as_json,
                secret=secret,
            )
        if dry_run or old_node_is_off or original:
            raise click.UsageError("--dry-run, --old-node-is-off and --original need --node.")
        if destination is None:
            raise click.MissingParameter(
                "For the database, name a file or a directory; for a whole node, add --node DIR.",
                param_hint="DESTINATION",
                param_type="argument",
            )
        from cln_backup.operations.restore import restore as restore_database
        from cln_backup.operations.restore import target_path

        target_path(destination)
        # With a version, an incomplete backup will do; without one, nothing may be missing.
        place, accepting = place_at(url), to is not None
        with (
            place.open_reader(secret=secret, on_event=tell, accept_incomplete=accepting) as reader,
            progress(size_of(reader), as_json=as_json) as step,
        ):
            done = restore_database(reader, destination, step, to)
            newest = reader.version
        if done.version < newest:
            warn(
                f"This database is older than the backup ({done.version} of {newest}). A node that "
                "starts on it loses its funds if its peers have seen a newer state. Use it only to "
                "go back to before a migration."
            )
        if not as_json:
            click.echo(
                f"Restored {done.path} at data version {done.version}: "
                f"{changes(done.version_count)}, {size(done.size_bytes)}. Integrity checks passed."
            )
            warn_of_foreign_keys(done.foreign_key_faults)
            show_notices(list(done.notices))
            click.echo(
                "Before you start the node: make sure that the old one can never start again, and "
                "put hsm_secret beside the database."
            )
        return done._asdict()
