"""`backup-cli`: sets a backup up, looks into it, and brings a node back from it."""

from __future__ import annotations

import functools
import gc
import json
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

import click

from cln_backup import __version__
from cln_backup.backends import (
    accepting_incomplete_copies,
    backend_class,
    open_backend,
    redacted,
    url_of,
)
from cln_backup.backends.contract import size_of
from cln_backup.cli.after_init import show_next_steps, warn_of_disk
from cln_backup.cli.boundary import speak, told
from cln_backup.cli.entry import stop_by
from cln_backup.cli.installation import plugin_path
from cln_backup.cli.parameters import Group
from cln_backup.cli.presentation import (
    Fields,
    age,
    amount,
    changes,
    moment,
    progress,
    report,
    rows_of,
    show_notices,
    show_table,
    size,
    warn,
    warn_of_foreign_keys,
    working,
)
from cln_backup.cli.secrets import register, unlocked, with_secrets
from cln_backup.cli.server import server, takeover, token
from cln_backup.compaction.compact import compact as compact_backup
from cln_backup.model.continuity import STARTED_WELL
from cln_backup.model.errors import BadUrl, Locked
from cln_backup.operations import history
from cln_backup.operations.initialize import initialize, take_snapshot
from cln_backup.operations.keyring import given_secret, list_keys, network_directory
from cln_backup.operations.restore import restore as restore_database
from cln_backup.operations.restore import target_path
from cln_backup.operations.verify import verify as verify_backup
from cln_backup.storage import interruption

if TYPE_CHECKING:
    from collections.abc import Callable


_url = click.argument("url", metavar="URL", callback=lambda _context, _parameter, url: url_of(url))
_directory = click.Path(file_okay=False)
_scratch_dir = click.option(
    "--scratch-dir",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Where the database is built meanwhile. By default beside the backup; for an encrypted "
    "one in the node's directory, where its key file and backup.lock are, or else where the "
    "system has its temporary files.",
)


def _command(
    example: str, group: click.Group | None = None, *, begins: bool = False
) -> Callable[[Callable[..., Fields]], click.Command]:
    """A command that returns what it found as fields, printed as JSON where asked for.

    One that begins a backup takes secrets that are new.
    """

    def decorate(function: Callable[..., Fields]) -> click.Command:
        @functools.wraps(function)
        def run(*args: object, as_json: bool, **options: object) -> None:
            with told(as_json=as_json):
                with unlocked(options, new=begins):
                    fields = function(*args, as_json=as_json, **options)
                if as_json and fields:
                    click.echo(json.dumps(fields))

        asks_for_json = click.option(
            "--json", "as_json", is_flag=True, help="Print JSON instead of text."
        )
        epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in example.splitlines())
        return (group or cli).command(epilog=epilog)(asks_for_json(with_secrets(run)))

    return decorate


@click.group(cls=Group, epilog="Exit codes and all options with examples: docs/cli.md")
@click.version_option(__version__, prog_name="backup-cli")
def cli() -> None:
    """Keep a Core Lightning node's database safe, and bring the node back.

    URL names a backup: dir:///absolute/path, socket:HOST:PORT on a server, or
    file:///absolute/path for the format of the community's plugin. A path alone will do; a new
    backup at a path alone is a dir: one.
    """


for _server_command in (server, token, takeover):
    cli.add_command(_server_command)


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
    help="The database, where lightningd's option wallet names another than lightningd.sqlite3. "
    "It is remembered in backup.lock.",
)
@click.option(
    "--encrypt",
    is_flag=True,
    help="Encrypt the backup. The node unlocks it with a key file that is made in its directory, "
    "backup.key; its hsm_secret and what else is named here unlock it as well. To name a secret "
    "here means --encrypt.",
)
@_url
def init(
    url: str, lightning_dir: str | None, wallet: str | None, encrypt: bool, *, as_json: bool
) -> Fields:
    """Make a new backup, starting with a snapshot of the node's database if it has one.

    The node must be stopped. An existing backup or backup.lock is never overwritten.
    """
    if wallet is not None and lightning_dir is None:
        raise click.UsageError("--wallet needs --lightning-dir.")
    given = given_secret() is not None
    if given and not backend_class(url).can_encrypt:
        raise BadUrl("Only a dir: backup can be encrypted; formats of other schemes cannot.")
    with working("Taking a snapshot of the database", as_json=as_json):
        if lightning_dir is None:
            if encrypt and not given:
                raise click.UsageError(
                    "--encrypt needs --lightning-dir. Without a node, name what unlocks the "
                    "backup: --key-file, --hsm-secret, --passphrase-file or --passphrase."
                )
            done = initialize(url, None)
        else:
            done = initialize(url, lightning_dir, wallet, encrypt=encrypt or given)
    url = done.backend_url
    keys = [key.label for key in list_keys(url)] if backend_class(url).can_encrypt else []
    if not as_json:
        shown = redacted(url)
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
            click.echo(f"The backup is encrypted. It is unlocked by each of: {', '.join(keys)}")
        show_notices(list(done.lacks))
    warn_of_disk(done, lightning_dir, as_json=as_json)
    if lightning_dir is not None and keys == ["key-file"] and not as_json:
        bare = url.partition("?")[0]
        warn(
            "Only the key file unlocks the backup. If it is lost with the node's disk, NOBODY CAN "
            "READ THE BACKUP: copy it to a place of its own, or let the node's hsm_secret unlock "
            "the backup too, once the node has made it: backup-cli key add --key-file "
            f"{lightning_dir}/backup.key --new-hsm-secret {lightning_dir}/hsm_secret {bare}"
        )
    line = f"important-plugin={plugin_path()}"
    if lightning_dir is not None and not as_json:
        show_next_steps(line, lightning_dir, done.database, wallet)
    return {
        **done._asdict(),
        "backend_url": redacted(url),
        "keys": keys,
        "configuration_line": line,
        "log_phrase": STARTED_WELL,
    }


@_command("backup-cli snapshot --lightning-dir ~/.lightning/bitcoin")
@click.option("--lightning-dir", type=_directory, required=True, help="As for init.")
def snapshot(lightning_dir: str, *, as_json: bool) -> Fields:
    """Bring a backup that is out of date up to the node, by a fresh snapshot.

    The node must be stopped. Nothing of the backup is removed.
    """
    with working("Taking a snapshot of the database", as_json=as_json):
        done = take_snapshot(lightning_dir, warn)
    if not as_json:
        click.echo(
            f"The backup is at data version {done.version} now ({size(done.snapshot_bytes)} "
            f"added, from {done.database}); you can start Core-Lightning"
        )
        if done.version_before == done.version:
            warn(
                f"The backup was at data version {done.version} before: as far as versions tell, "
                "nothing was missing. If the node was refused because the backup is out of date, "
                f"its database is another one than {done.database}: see lightningd's option "
                'wallet, and name it in backup.lock: "wallet": "/the/path.sqlite3"'
            )
    return done._asdict()


@_command(
    "backup-cli restore file:///mnt/backup/node.bkp ~/.lightning/bitcoin\n"
    "backup-cli restore file:///mnt/backup/node.bkp /tmp/look.sqlite3"
)
@click.option(
    "--to",
    type=click.IntRange(min=0),
    metavar="VERSION",
    help="Stop at this data version, for a migration that was cut in the middle and cannot go on, "
    "or where nothing but an incomplete copy is left. In any other case an old database loses "
    "money.",
)
@_url
@click.argument("destination", metavar="DESTINATION")
def restore(url: str, destination: str, to: int | None, *, as_json: bool) -> Fields:
    """Bring the database back, to a file or as lightningd.sqlite3 in a directory.

    Nothing is ever overwritten. The database is built beside its name, checked, and synced; only
    then it gets its name.
    """
    target_path(destination)
    # Whoever names a version asks for what is there; without one, nothing may be missing.
    accepting = nullcontext() if to is None else accepting_incomplete_copies()
    with (
        accepting,
        open_backend(url) as backend,
        progress(size_of(backend), as_json=as_json) as step,
    ):
        show_notices(backend.notices)
        done = restore_database(backend, destination, step, to)
        newest = backend.version
    if done.version < newest:
        warn(
            f"This database is older than the backup ({done.version} of {newest}). A node whose "
            "peers have seen anything newer loses its funds with it; it is good only for going "
            "back to before a migration."
        )
    if not as_json:
        click.echo(
            f"Restored {done.path} at data version {done.version}: {changes(done.version_count)}, "
            f"{size(done.size_bytes)}. Its checks have passed."
        )
        warn_of_foreign_keys(done.foreign_key_faults)
        show_notices(list(done.notices))
        click.echo(
            "Before you start the node: make sure that the old one can never start again, and put "
            "hsm_secret beside the database."
        )
    return done._asdict()


@_command("backup-cli status file:///mnt/backup/node.bkp")
@_url
def status(url: str, *, as_json: bool) -> Fields:
    """Say where a backup stands. A running node may write to it meanwhile.

    Of an encrypted backup that nothing unlocks, it says what can be known.
    """
    held = history.holdings(url)
    try:
        with open_backend(url) as backend:
            found = history.status(backend)
            notices = list(backend.notices)
    except Locked as error:
        if not as_json:
            show_table(("backup", redacted(url)), *rows_of(held))
        report(error, as_json=as_json, known=held._asdict())
        raise click.exceptions.Exit(error.exit_code) from None
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
            *rows_of(held),
        )
    show_notices(notices)
    return found._asdict() | held._asdict() | {"notices": notices}


@_command(
    "backup-cli verify file:///mnt/backup/node.bkp\n"
    "backup-cli verify --no-replay file:///mnt/backup/node.bkp"
)
@click.option(
    "--no-replay",
    is_flag=True,
    help="Only read the backup; do not replay it into a database beside it.",
)
@_scratch_dir
@_url
def verify(url: str, no_replay: bool, scratch_dir: str | None, *, as_json: bool) -> Fields:
    """Say how much of a backup is good.

    Every change is read and replayed into a database, which is checked and removed again. It
    needs room for the database: beside the backup, or in --scratch-dir.
    """
    with open_backend(url) as backend, progress(size_of(backend), as_json=as_json) as step:
        notices = list(backend.notices)
        place = scratch_dir or network_directory(url)
        found = verify_backup(backend, replayed=not no_replay, progress=step, scratch_dir=place)
    if not as_json:
        how = "replayed and checked" if found.replayed else "read"
        one = found.version_count == 1
        which = "its 1 change was" if one else f"all {found.version_count} changes were"
        click.echo(f"Good up to data version {found.version}: {which} {how}.")
        warn_of_foreign_keys(found.foreign_key_faults)
    show_notices(notices)
    return found._asdict() | {"good": True, "notices": notices}


@_command("backup-cli compact file:///mnt/backup/node.bkp")
@click.option("--force", is_flag=True, help="Compact it also where it does not get smaller.")
@_scratch_dir
@_url
def compact(url: str, scratch_dir: str | None, *, force: bool, as_json: bool) -> Fields:
    """Fold a backup's history into one snapshot; the last change stays as it is.

    It is done where the backup gets smaller, or where at least 100,000 changes are folded. For a
    backup that no node writes to. Where one does, use: lightning-cli backup-compact
    """
    with open_backend(url) as backend:
        of = size_of(backend)
    with progress(of, as_json=as_json) as step:
        place = scratch_dir or network_directory(url)
        done = compact_backup(url, step, warn, place, if_it_pays=not force)
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


@_command(
    "backup-cli log file:///mnt/backup/node.bkp\n"
    "backup-cli log --from 9000 --json file:///mnt/backup/node.bkp"
)
@click.option("--from", "start", type=click.IntRange(min=0), default=0, help="First data version.")
@click.option(
    "--dropped", is_flag=True, help="List the dropped changes that a dir: backup still holds."
)
@_url
def log(url: str, start: int, dropped: bool, *, as_json: bool) -> Fields:
    """List the changes, one a line, without their contents.

    Shown are data version, when it was stored, kind, size in bytes, number of statements and the
    tables touched; with --json, one object a line. A file: backup has no room for times.
    """
    with open_backend(url) as backend:
        if not as_json:
            click.echo(
                f"{'version':>10}  {'kind':<11}  {'bytes':>12}  {'statements':>10}  "
                f"{'stored':<19}  tables"
            )
        for line in history.log(backend, start, dropped=dropped):
            if as_json:
                click.echo(json.dumps(line._asdict()))
            else:
                stored = "-" if line.stored_at is None else moment(line.stored_at)
                click.echo(
                    f"{line.version:>10}  {line.kind:<11}  {line.size_bytes:>12}  "
                    f"{line.statements:>10}  {stored:<19}  {', '.join(line.tables)}"
                )
        show_notices(backend.notices)
    return {}


register(cli, _command)


def main() -> None:
    """The command line."""
    gc.freeze()  # what was imported lives to the end, and is not searched for garbage there
    stop_by(interruption.arrived)
    code = speak(cli)
    interruption.ignore()
    sys.exit(code)


if __name__ == "__main__":
    main()
