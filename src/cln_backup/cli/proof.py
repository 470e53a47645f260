"""`backup-cli verify` and `backup-cli drill`: proof that a backup restores the node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cln_backup.backends import place_at
from cln_backup.backends.ticket import size_of
from cln_backup.cli.parameters import with_url_as
from cln_backup.cli.presentation import (
    Noticing,
    changes,
    progress,
    report,
    show_notices,
    size,
    warn,
    warn_of_foreign_keys,
)
from cln_backup.model.errors import Discontinuity

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.cli.presentation import Fields
    from cln_backup.cli.secrets import Command
    from cln_backup.operations.against import Compared
    from cln_backup.operations.keyring import Secret

_directory = click.Path(file_okay=False)


def register(
    command: Command, scratch_dir: Callable[[Callable[..., Fields]], Callable[..., Fields]]
) -> None:
    """Adds the commands to the others.

    `command` is the decorator that makes one, `scratch_dir` adds that option.
    """

    @command(
        "backup-cli verify file:///mnt/backup/node.bkp\n"
        "backup-cli verify --checksums file:///mnt/backup/node.bkp\n"
        "backup-cli verify --against ~/.lightning/bitcoin"
    )
    @click.option(
        "--checksums",
        "--no-replay",
        "checksums",
        is_flag=True,
        help="Only read the backup; do not replay it into a database.",
    )
    @click.option(
        "--against",
        type=_directory,
        metavar="DIR",
        help="Also compare the result with the database of the node in this network directory, "
        "stopped or running, table by table at the same version. Without URL, the backup in its "
        "backup.lock is verified.",
    )
    @scratch_dir
    @with_url_as(directory_from="against")
    def verify(
        url: str,
        against: str | None,
        scratch_dir: str | None,
        *,
        checksums: bool,
        as_json: bool,
        secret: Secret | None,
    ) -> Fields:
        """Check a backup, and show up to which version it is good.

        Reads every change and replays it into a database, which is checked and removed again. Needs
        free space for the database: beside the backup, or in --scratch-dir.
        """
        from cln_backup.operations.keyring import network_directory
        from cln_backup.operations.verify import verify as verify_backup
        from cln_backup.operations.verify import verify_against

        if checksums and against is not None:
            raise click.UsageError("--against needs a replay; leave out --checksums.")
        noticed, compared = Noticing(), None
        with (
            place_at(url).open_reader(secret=secret, on_event=noticed) as reader,
            progress(size_of(reader), as_json=as_json) as step,
        ):
            if against is not None:
                found, compared = verify_against(
                    reader, against, progress=step, scratch_dir=scratch_dir
                )
            else:
                directory = scratch_dir or network_directory(url, secret)
                found = verify_backup(
                    reader, replayed=not checksums, progress=step, scratch_dir=directory
                )
        if not as_json:
            how = "replayed and checked" if found.replayed else "read"
            one = found.version_count == 1
            which = "its 1 change was" if one else f"all {found.version_count} changes were"
            if found.healed:
                passed_over = sum(healed.changes for healed in found.healed)
                left = found.version_count - passed_over
                which = f"{left} of {found.version_count} changes were"
            click.echo(f"Good up to data version {found.version}: {which} {how}.")
            warn_of_foreign_keys(found.foreign_key_faults)
            for healed in found.healed:
                count = "1 change" if healed.changes == 1 else f"{healed.changes} changes"
                warn(
                    f"Passed over {count} after data version {healed.good_version} that cannot be "
                    f"replayed. A snapshot at {healed.healed_version} has healed the backup: its "
                    "last version is right, but the versions between cannot be restored."
                )
        show_notices(noticed.texts)
        fields = found._asdict() | {"good": True, "notices": noticed.texts}
        fields["healed"] = [healed._asdict() for healed in found.healed]
        if compared is not None:
            fields |= _shown(compared, as_json=as_json)
            _require_same(compared, fields, as_json=as_json)
        return fields

    @command(
        "backup-cli drill\n"
        "backup-cli drill --lightning-dir ~/.lightning/bitcoin\n"
        "backup-cli drill --lightning-dir ~/.lightning/bitcoin /mnt/copy/node"
    )
    @click.option(
        "--scratch-dir",
        type=_directory,
        metavar="DIR",
        help="Directory where the database is restored. By default in the node's directory.",
    )
    @with_url_as(
        help="The node's network directory. Without URL, the backup in its backup.lock is "
        "restored. Not needed for the only node on this machine.",
        needs_directory=True,
    )
    def drill(
        url: str,
        lightning_dir: str,
        scratch_dir: str | None,
        *,
        as_json: bool,
        secret: Secret | None,
    ) -> Fields:
        """Rehearse a restore: restore the backup, compare it with the node, remove it again.

        The node may run. The result is remembered in its directory, and shown by backup-status.
        Needs free space for the database: there, or in --scratch-dir.
        """
        from cln_backup.operations.drill import drill as drill_backup
        from cln_backup.operations.drill import failures_remembered

        noticed = Noticing()
        with (
            failures_remembered(lightning_dir),
            place_at(url).open_reader(secret=secret, on_event=noticed) as reader,
            progress(size_of(reader), as_json=as_json) as step,
        ):
            done = drill_backup(reader, lightning_dir, step, scratch_dir)
        if not as_json:
            click.echo(
                f"Restored data version {done.version} in {done.restore_s:.1f} s: "
                f"{changes(done.version_count)}, {size(done.size_bytes)}. Integrity checks passed."
            )
            warn_of_foreign_keys(done.foreign_key_faults)
        show_notices(noticed.texts)
        fields = done._asdict() | _shown(done.compared, as_json=as_json)
        del fields["compared"]
        _require_same(done.compared, fields, as_json=as_json)
        if not as_json:
            click.echo("The drill passed; the restored database was removed.")
        return fields


def _shown(compared: Compared, *, as_json: bool) -> Fields:
    """Prints the result of a comparison; returns it as fields."""
    if not as_json:
        number = f"{compared.tables} tables"
        if not compared.differences:
            click.echo(
                f"Compared with {compared.database} at data version {compared.compared_version}: "
                f"all rows of {number} are the same."
            )
        click.echo(
            f"Content digest at data version {compared.compared_version}: {compared.content_digest}"
        )
        if compared.indexes:
            warn(f"Only indexes or views differ, which hold no data: {compared.indexes}")
        if compared.not_compared:
            warn(
                "Not compared, because they are too large to be read at once and have no key: "
                f"{', '.join(compared.not_compared)}"
            )
    return compared._asdict()


def _require_same(compared: Compared, fields: Fields, *, as_json: bool) -> None:
    """Ends the command with an error if the two differ."""
    if not compared.differences:
        return
    error = Discontinuity(
        f"The backup differs from {compared.database}, both at data version "
        f"{compared.compared_version}: {compared.differences}. Keep both as they are. "
        "docs/alarms/content.md says what to do."
    )
    report(error, as_json=as_json, known=fields)
    raise click.exceptions.Exit(error.exit_code)
