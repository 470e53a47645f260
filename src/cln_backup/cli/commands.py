"""`backup-cli`: sets up a backup, inspects it, and restores a node from it."""

from __future__ import annotations

import functools
import gc
import json
import sys
from typing import TYPE_CHECKING

import click

from cln_backup import __version__
from cln_backup.backends import place_at, redacted, url_of
from cln_backup.backends.ticket import size_of
from cln_backup.cli import doctor, log, proof, restore, rollforward, status, undo_migration
from cln_backup.cli.after_init import (
    show_next_steps,
    show_rights,
    warn_of_disk,
)
from cln_backup.cli.boundary import speak, told
from cln_backup.cli.entry import stop_by
from cln_backup.cli.installation import plugin_path
from cln_backup.cli.node_files import show_node_files, with_node_files
from cln_backup.cli.parameters import with_url
from cln_backup.cli.presentation import (
    Fields,
    amount,
    progress,
    show_notices,
    size,
    tell,
    warn,
    working,
)
from cln_backup.cli.program import Program, help_command, schema_command
from cln_backup.cli.secrets import register, secret_of, with_secrets
from cln_backup.cli.server import server, takeover, token
from cln_backup.cli.standby import register as register_standby
from cln_backup.cli.terminal import show_table
from cln_backup.model.continuity import STARTED_WELL
from cln_backup.storage import interruption

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.model.node_files import Wanted
    from cln_backup.operations.keyring import Secret

_url = click.argument("url", metavar="URL", callback=lambda _context, _parameter, url: url_of(url))
_directory = click.Path(file_okay=False)
_scratch_dir = click.option(
    "--scratch-dir",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Directory where the database is built. By default beside the backup; for an encrypted "
    "backup, in the node's directory if its key file and backup.lock are there, otherwise in the "
    "system's directory for temporary files.",
)


def _command(
    example: str, group: click.Group | None = None, *, begins: bool = False
) -> Callable[[Callable[..., Fields]], click.Command]:
    """Makes a command that returns its result as fields, printed as JSON with `--json`.

    A command that makes a backup takes new secrets.
    """

    def decorate(function: Callable[..., Fields]) -> click.Command:
        @functools.wraps(function)
        def run(*args: object, as_json: bool, **options: object) -> None:
            with told(as_json=as_json):
                secret = secret_of(options, new=begins)
                fields = function(*args, as_json=as_json, secret=secret, **options)
                if as_json and fields:
                    click.echo(json.dumps(fields))

        asks_for_json = click.option(
            "--json", "as_json", is_flag=True, help="Print JSON instead of text."
        )
        epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in example.splitlines())
        return (group or cli).command(epilog=epilog)(asks_for_json(with_secrets(run)))

    return decorate


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes and all options with examples: docs/cli.md",
)
@click.version_option(__version__, prog_name="backup-cli")
def cli() -> None:
    """Back up a Core Lightning node's database, and restore the node.

    URL names a backup: dir:///absolute/path, socket:HOST:PORT on a server, or
    file:///absolute/path for the format of the community's plugin. A path alone works too; a new
    backup at a path alone is a dir: backup.
    """


for _other in (help_command, schema_command, server, token, takeover):
    cli.add_command(_other)


@_command(
    "backup-cli init --lightning-dir ~/.lightning/bitcoin /mnt/backup/node\n"
    "backup-cli init --encrypt --lightning-dir ~/.lightning/bitcoin /mnt/backup/node\n"
    "backup-cli init --lightning-dir ~/.lightning/bitcoin file:///mnt/backup/node.bkp\n"
    "backup-cli init /mnt/backup/node",
    begins=True,
)
@click.option(
    "--lightning-dir",
    type=_directory,
    help="The node's network directory, such as ~/.lightning/bitcoin. Without it the backup "
    "starts empty, and no backup.lock is written.",
)
@click.option(
    "--wallet",
    help="The database, if lightningd's option wallet names a different file than "
    "lightningd.sqlite3. It is stored in backup.lock.",
)
@click.option(
    "--encrypt",
    is_flag=True,
    help="Encrypt the backup. The node unlocks it with the key file backup.key, which is made in "
    "its directory; its hsm_secret and any other secret given here unlock it too. Giving a secret "
    "implies --encrypt.",
)
@with_node_files
@_url
def init(
    url: str,
    lightning_dir: str | None,
    wallet: str | None,
    encrypt: bool,
    *,
    files: Wanted,
    as_json: bool,
    secret: Secret | None,
) -> Fields:
    """Make a new backup, starting with a snapshot of the node's database if it has one.

    The node must be stopped. An existing backup or backup.lock is never overwritten.
    """
    from cln_backup.operations.initialize import initialize
    from cln_backup.operations.keyring import list_keys, without_keys

    if wallet is not None and lightning_dir is None:
        raise click.UsageError("--wallet needs --lightning-dir.")
    given = secret is not None
    if given or encrypt:
        place_at(url).require_encryption()
    with working("Taking a snapshot of the database", as_json=as_json):
        if lightning_dir is None:
            if encrypt and not given:
                raise click.UsageError(
                    "--encrypt needs --lightning-dir. Without a node, give the secret that unlocks "
                    "the backup: --key-file, --hsm-secret, --passphrase-file or --passphrase."
                )
            done = initialize(url, None, secret=secret)
        else:
            encrypt = encrypt or given
            done = initialize(
                url, lightning_dir, wallet, encrypt=encrypt, secret=secret, files=files
            )
    url = done.backend_url
    keys = [key.label for key in list_keys(url)] if place_at(url).can_encrypt else []
    shown = redacted(url)
    if not as_json:
        if done.database is not None:
            click.echo(
                f"Found an existing database at {done.database}, initializing the backup with a "
                "snapshot"
            )
            click.echo(
                f"Successfully written initial snapshot to {shown} (data version {done.version}, "
                f"{size(done.snapshot_bytes)})"
            )
        elif lightning_dir is not None:
            click.echo("Database does not exist yet, created an empty backup file")
        click.echo(f"Initialized backup backend {shown}")
        if keys:
            click.echo(f"The backup is encrypted. Each of these keys unlocks it: {', '.join(keys)}")
        show_node_files(done)
        show_notices(list(done.lacks))
        show_rights(place_at(url).rights)
    warn_of_disk(done, lightning_dir, as_json=as_json)
    if lightning_dir is not None and keys == ["key-file"] and not as_json:
        bare = without_keys(url)
        warn(
            "Only the key file unlocks the backup. If it is lost with the node's disk, THE BACKUP "
            "CANNOT BE READ: copy the key file to a separate place, or let the node's hsm_secret "
            "unlock the backup too, once the node has made it: backup-cli key add --key-file "
            f"{lightning_dir}/backup.key --new-hsm-secret {lightning_dir}/hsm_secret {bare}"
        )
    line = f"important-plugin={plugin_path()}"
    if lightning_dir is not None and not as_json:
        show_next_steps(line, lightning_dir, done.database, wallet)
    return {
        **done._asdict(),
        "backend_url": shown,
        "keys": keys,
        "configuration_line": line,
        "log_phrase": STARTED_WELL,
    }


@_command("backup-cli snapshot --lightning-dir ~/.lightning/bitcoin")
@click.option("--lightning-dir", type=_directory, required=True, help="As for init.")
@click.option(
    "--unproven",
    is_flag=True,
    help="Append it even if parts of the database are older than in the backup, or the backup "
    "cannot be replayed. A node that starts on an old state of its database loses funds: use this "
    "only if you know that the node's last state is in this very database.",
)
def snapshot(lightning_dir: str, *, unproven: bool, as_json: bool, secret: Secret | None) -> Fields:
    """Bring a backup that is out of date up to the node, with a fresh snapshot.

    The node must be stopped. Nothing is removed from the backup. The backup is replayed to prove
    that no part of the database is older.
    """
    from cln_backup.operations.initialize import take_snapshot

    with working("Taking a snapshot of the database", as_json=as_json):
        done = take_snapshot(lightning_dir, secret=secret, on_event=tell, unproven=unproven)
    if not as_json:
        click.echo(
            f"The backup is at data version {done.version} now ({size(done.snapshot_bytes)} "
            f"added, from {done.database}); you can start Core-Lightning"
        )
        if done.version_before == done.version:
            warn(
                f"The backup was at data version {done.version} before, so nothing seems to have "
                "been missing, unless its contents were different. If the node still refuses to "
                "start because the backup is out of date, it uses a different database than "
                f"{done.database}: see lightningd's option wallet, and name it in backup.lock: "
                '"wallet": "/the/path.sqlite3"'
            )
    return done._asdict()


@_command("backup-cli compact file:///mnt/backup/node.bkp")
@click.option(
    "--force",
    is_flag=True,
    help="Compact it even if it does not get smaller, or if a migration is not finished, which "
    "cannot be undone then.",
)
@_scratch_dir
@with_url
def compact(
    url: str,
    scratch_dir: str | None,
    *,
    force: bool,
    as_json: bool,
    secret: Secret | None,
) -> Fields:
    """Fold a backup's history into one snapshot; the last change stays as it is.

    Compacts only if the backup gets smaller, or if at least 100,000 changes are folded. For a
    backup that no running node writes to. Otherwise use: lightning-cli backup-compact
    """
    from cln_backup.compaction.compact import compact as compact_backup
    from cln_backup.operations.keyring import network_directory

    with place_at(url).open_reader(secret=secret) as reader:
        of = size_of(reader)
    with progress(of, as_json=as_json) as step:
        directory = scratch_dir or network_directory(url, secret)
        done = compact_backup(
            url, step, directory, secret=secret, on_event=tell, if_it_pays=not force
        )
    if "would_be" in done and not as_json:
        click.echo(
            f"Not compacted: it would not get smaller. It has {amount(done['before'])}, and would "
            f"have {amount(done['would_be'])}."
        )
    elif not as_json:
        show_table(
            ("before", amount(done["before"])),
            ("after", amount(done["after"])),
        )
    return dict(done)


restore.register(_command)
log.register(_command)
status.register(_command)
doctor.register(_command)
rollforward.register(_command)
proof.register(_command, _scratch_dir)
undo_migration.register(_command)
register(cli, _command)
register_standby(_command)


def main() -> None:
    """The command line."""
    gc.freeze()  # imported modules live to the end, and need no garbage collection there
    gc.enable()
    stop_by(interruption.arrived)
    code = speak(cli)
    interruption.ignore()
    sys.exit(code)


if __name__ == "__main__":
    main()
