"""`backup-cli log`: the changes of a backup, one a line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from cln_backup.backends import place_at
from cln_backup.cli.parameters import with_url
from cln_backup.cli.presentation import Noticing, moment, show_notices, tell
from cln_backup.cli.terminal import cut, painted, width
from cln_backup.model.health import Level

if TYPE_CHECKING:
    from cln_backup.cli.presentation import Fields
    from cln_backup.cli.secrets import Command
    from cln_backup.operations.history import LogLine
    from cln_backup.operations.keyring import Secret

_ROOM_FOR_ALL = 100
"""Columns of a terminal; a narrower one has no room for the statements and the year."""


def register(command: Command) -> None:
    """Adds the command to the others; `command` is the decorator that makes one."""

    @command(
        "backup-cli log file:///mnt/backup/node.bkp\n"
        "backup-cli log --follow\n"
        "backup-cli log --from 9000 --json file:///mnt/backup/node.bkp"
    )
    @click.option("--from", "start", type=click.IntRange(min=0), help="First data version.")
    @click.option(
        "--follow",
        "-f",
        "follows",
        is_flag=True,
        help="Wait for new changes and list them too, until Ctrl-C. Without --from, begin with the "
        "last ten versions.",
    )
    @click.option(
        "--dropped", is_flag=True, help="List the dropped changes that a dir: backup still has."
    )
    @with_url
    def log(
        url: str,
        start: int | None,
        *,
        follows: bool,
        dropped: bool,
        as_json: bool,
        secret: Secret | None,
    ) -> Fields:
        """List the changes, one per line, without their contents.

        Shows the data version, kind, size in bytes, number of statements, time of storage and the
        tables touched; with --json, one object per line. A file: backup stores no times.
        """
        from cln_backup.operations import following, history

        if follows and dropped:
            raise click.UsageError("--follow lists the changes as they are made; not --dropped.")
        noticed = Noticing()
        table = None if as_json else _Table()
        show = _show_as_json if table is None else table.show
        if follows:
            following.follow(url, show, start, secret=secret, on_event=tell)
            return {}
        with place_at(url).open_reader(secret=secret, on_event=noticed) as reader:
            for line in history.log(reader, start or 0, dropped=dropped):
                show(line, False)
            if table is not None:
                table.head()
            show_notices(noticed.texts)
        return {}


def _show_as_json(line: LogLine, is_gone: bool) -> None:
    click.echo(json.dumps(line._asdict() | ({"dropped": True} if is_gone else {})))


class _Table:
    """Rows for people; on a terminal each is one line."""

    def __init__(self) -> None:
        self._columns = width()
        self._is_narrow = self._columns is not None and self._columns < _ROOM_FOR_ALL
        self._has_head = False

    def head(self) -> None:
        """Prints the names of the columns, once."""
        if not self._has_head:
            self._has_head = True
            self._show("version", "kind", "bytes", "statements", "stored", "tables")

    def show(self, line: LogLine, is_gone: bool) -> None:
        """Prints a change."""
        self.head()
        stored = "-" if line.stored_at is None else moment(line.stored_at)
        number, size, count = str(line.version), f"{line.size_bytes:,}", f"{line.statements:,}"
        if is_gone:
            text = "dropped: the node did not commit it"
            self._show(number, line.kind, size, count, stored, text, level=Level.WARNING)
        else:
            self._show(number, line.kind, size, count, stored, ", ".join(line.tables))

    def _show(
        self,
        version: str,
        kind: str,
        size: str,
        statements: str,
        stored: str,
        tables: str,
        level: Level | None = None,
    ) -> None:
        if self._is_narrow:
            head = f"{version:>8}  {kind:<11}  {size:>10}  {stored.partition('-')[2] or stored:<14}"
        else:
            head = f"{version:>10}  {kind:<11}  {size:>13}  {statements:>10}  {stored:<19}"
        text = cut(f"{head}  {tables}", self._columns)
        click.echo(text if level is None else painted(text, level))
