"""The closing notes of `backup-cli init`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from cln_backup.cli.node_files import has_hsm_secret
from cln_backup.cli.presentation import warn
from cln_backup.model.continuity import STARTED_WELL
from cln_backup.node.outside import database_path

if TYPE_CHECKING:
    from cln_backup.operations.initialize import Initialized

_REMIND_OF_HSM = (
    "hsm_secret is not in the backup, and a restored database is useless without it. Copy it once "
    "to a separate place; it does not change."
)


def show_next_steps(line: str, directory: str, database: str | None, wallet: str | None) -> None:
    """Prints the steps that remain before the node is protected."""
    if wallet is None:
        path = database or database_path(directory, None)
        click.echo(
            f"The node's database is assumed to be {path}. If lightningd's option wallet names a "
            "different one, move backup.lock and this backup away and start over with --wallet "
            "PATH."
        )
    click.echo(
        "\nTHE NODE IS NOT PROTECTED YET. First put this line into lightningd's configuration "
        f"({os.path.dirname(os.path.abspath(directory))}/config):\n\n{line}\n\n"
        f"Then start Core-Lightning, and look for this in its log: {STARTED_WELL}"
    )


def show_rights(rights: str | None) -> None:
    """Prints what the operator of the storage has to run, if there is anything."""
    if rights is not None:
        click.echo(f"A node's role needs these rights, and no others:\n\n{rights}\n")


def warn_of_disk(done: Initialized, lightning_dir: str | None, *, as_json: bool) -> None:
    """Prints notes about risks that the new backup does not cover."""
    if as_json or lightning_dir is None:
        return
    if done.same_disk:
        warn(
            "The backup is on the same disk as the database: it does not help if that disk fails. "
            "Choose a place on another disk, or better on another machine."
        )
    if not has_hsm_secret(done):
        warn(_REMIND_OF_HSM)
