"""The commands of `backup-cli` that are about a server: `server`, `token`, `takeover`."""

from __future__ import annotations

import json
from typing import Any

import click

from cln_backup.backends import redacted
from cln_backup.backends.socket.token_file import create_token
from cln_backup.cli.boundary import told
from cln_backup.cli.parameters import Command
from cln_backup.server.admission import MAX_CONNECTIONS
from cln_backup.server.logs import LEVELS, MODES


@click.command(
    cls=Command,
    epilog="\b\nExamples:\n"
    "  backup-cli server file:///srv/backup/node.bkp 127.0.0.1:8700\n"
    "  backup-cli server --nodes /etc/cln-backup/nodes --tls-dir /var/lib/cln-backup [::]:8700",
)
@click.argument("places", metavar="[URL] [HOST:PORT]", nargs=-1)
@click.option(
    "--nodes",
    "nodes_file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Serve several nodes, each with its own token: lines of NAME URL HASH.",
)
@click.option("--tls-cert", type=click.Path(dir_okay=False), help="A certificate (PEM).")
@click.option("--tls-key", type=click.Path(dir_okay=False), help="Its key (PEM).")
@click.option(
    "--tls-dir",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Keep a certificate of our own in DIR; it is made at the first start.",
)
@click.option(
    "--insecure", is_flag=True, help="Listen for other machines without TLS or without tokens."
)
@click.option("--metrics", metavar="HOST:PORT", help="Serve figures for Prometheus there.")
@click.option(
    "--max-connections",
    type=click.IntRange(min=4),
    default=MAX_CONNECTIONS,
    show_default=True,
    metavar="N",
    help="How many connections may be open at once.",
)
@click.option(
    "--log-mode",
    type=click.Choice(MODES, case_sensitive=False),
    default="plain",
    show_default=True,
    help="systemd puts the journal's levels before the lines.",
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS, case_sensitive=False),
    default="info",
    show_default=True,
    help="The least level that is logged.",
)
def server(places: tuple[str, ...], nodes_file: str | None, **options: Any) -> None:  # noqa: ANN401 - as click has them
    """Serve backups to nodes on other machines.

    Without --nodes, URL is the one backup that is served. HOST:PORT is where to listen; it is left
    out where systemd opens the socket.
    """
    from cln_backup.server.command import Options, serve

    urls = places if nodes_file is None else ("", *places)
    if not 1 <= len(urls) <= 2:
        raise click.UsageError("Give URL and HOST:PORT; with --nodes, HOST:PORT alone.")
    address = urls[1] if len(urls) == 2 else None
    with told(as_json=False):
        serve(urls[0] or None, address, Options(nodes_file, **options))


_asks_for_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


@click.command(
    cls=Command, epilog="\b\nExamples:\n  backup-cli token ~/.lightning/bitcoin/backup.token"
)
@_asks_for_json
@click.argument("path", metavar="FILE", type=click.Path(dir_okay=False))
def token(path: str, *, as_json: bool) -> None:
    """Make a token for a node in a new FILE, and show its hash for the server's list."""
    with told(as_json=as_json):
        shown = create_token(path)
        click.echo(json.dumps({"hash": shown}) if as_json else shown)


@click.command(
    cls=Command, epilog="\b\nExamples:\n  backup-cli takeover socket:backup.example:8700"
)
@_asks_for_json
@click.argument("url", metavar="URL")
def takeover(url: str, *, as_json: bool) -> None:
    """Have a server refuse whoever writes to a backup now, so that another node can begin.

    Make sure before that the old node is gone for good: two running copies of one node lose funds.
    """
    from cln_backup.backends.socket.backend import take_over

    with told(as_json=as_json):
        take_over(url)
        if as_json:
            click.echo(json.dumps({"backend_url": redacted(url)}))
            return
        click.echo("The writer of before is refused from now on; the next one may begin.")
