"""The options and notes of `backup-cli init` about the node's small files."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import click

from cln_backup.cli.presentation import warn
from cln_backup.model.node_files import NETWORK, Wanted

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.cli.presentation import Fields
    from cln_backup.operations.initialize import Initialized

_HSM_SECRET = f"{NETWORK}/hsm_secret"


def with_node_files(function: Callable[..., Fields]) -> Callable[..., Fields]:
    """Adds the options; the command gets them as `files`."""

    @click.option(
        "--node-files/--no-node-files",
        default=None,
        help="Keep the node's small files in the backup, too: config, certificates, "
        "emergency.recover. By default if the backup is encrypted.",
    )
    @click.option(
        "--with-hsm-secret",
        is_flag=True,
        help="Keep hsm_secret in the backup, too. Then the backup and one secret that unlocks it "
        "are all that it takes to spend the node's funds. For encrypted backups only.",
    )
    @click.option(
        "--tor-dir",
        type=click.Path(exists=True, file_okay=False, resolve_path=True),
        help="Keep the key of Tor's onion service, too, from its HiddenServiceDir, so that the "
        "node keeps its address.",
    )
    @functools.wraps(function)
    def run(
        *args: object,
        node_files: bool | None,
        with_hsm_secret: bool,
        tor_dir: str | None,
        **options: object,
    ) -> Fields:
        if node_files is False and (with_hsm_secret or tor_dir):
            raise click.UsageError("--no-node-files excludes --with-hsm-secret and --tor-dir.")
        if (node_files or with_hsm_secret or tor_dir) and options.get("lightning_dir") is None:
            raise click.UsageError("The node's files need --lightning-dir.")
        if tor_dir is not None:
            node_files = True
        return function(*args, files=Wanted(node_files, with_hsm_secret, tor_dir), **options)

    return run


def show_node_files(done: Initialized) -> None:
    """Prints which of the node's files are in a new backup."""
    if done.node_files is None:
        return
    names = [name.partition("/")[2] for name in done.node_files]
    click.echo(f"The node's files in the backup: {', '.join(names)}")
    for notice in done.node_files_notices:
        warn(notice)
    if _HSM_SECRET in done.node_files:
        warn(
            "hsm_secret is in the backup. FROM NOW ON, THE BACKUP AND ONE SECRET THAT UNLOCKS IT "
            "(a key file, a passphrase) ARE THE NODE'S FUNDS: keep the two in separate places, and "
            "give both to no one."
        )


def has_hsm_secret(done: Initialized) -> bool:
    """Whether the new backup has the node's secret."""
    return _HSM_SECRET in (done.node_files or ())
