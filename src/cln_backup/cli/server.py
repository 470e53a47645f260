"""The commands of `backup-cli` for a server: `server`, `token`, `takeover`."""

from __future__ import annotations

import json
from typing import Any

import click

from cln_backup.backends import redacted
from cln_backup.cli.boundary import told
from cln_backup.cli.parameters import Command
from cln_backup.compaction.policy import Limits
from cln_backup.server.admission import MAX_CONNECTIONS
from cln_backup.server.logs import LEVELS, MODES

LIMITS = Limits()


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
    help="Keep the server's own certificate in DIR; it is made at the first start.",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Accept connections from other machines without TLS or without tokens.",
)
@click.option("--metrics", metavar="HOST:PORT", help="Serve metrics for Prometheus there.")
@click.option(
    "--page",
    metavar="HOST:PORT",
    help="Serve a page for a browser there that shows whether the backups are safe.",
)
@click.option(
    "--page-name",
    "page_names",
    multiple=True,
    metavar="NAME",
    help="A name under which the page may be asked for, besides its address.",
)
@click.option(
    "--replica-dir",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Where to keep the replicas that prove the backups; off for none. By default one beside "
    "each backup that is not encrypted.",
)
@click.option(
    "--compact",
    type=click.Choice(("auto", "off")),
    default="auto",
    show_default=True,
    help="Whether the backups compact by themselves.",
)
@click.option(
    "--compact-ratio",
    type=click.FloatRange(min=0.1),
    default=LIMITS.ratio,
    show_default=True,
    metavar="N",
    help="Compact when the log is so many times as large as the snapshot.",
)
@click.option(
    "--compact-max-changes",
    type=click.IntRange(min=100),
    default=LIMITS.max_changes,
    show_default=True,
    metavar="N",
    help="Compact when the log has so many changes, which a restore replays.",
)
@click.option(
    "--compact-max-days",
    type=click.FloatRange(min=1),
    default=LIMITS.max_days,
    show_default=True,
    metavar="N",
    help="Compact after so many days, if it frees enough space.",
)
@click.option(
    "--alarm-apprise",
    multiple=True,
    metavar="URL",
    help="URL of Apprise to send alarms to, or a file with one URL a line.",
)
@click.option(
    "--alarm-webhook",
    multiple=True,
    metavar="URL",
    help="URL that gets each alarm as a POST with JSON.",
)
@click.option(
    "--alarm-command",
    multiple=True,
    metavar="COMMAND",
    help="Command that gets each alarm as JSON on its standard input.",
)
@click.option(
    "--alarm-ping",
    multiple=True,
    metavar="URL",
    help="URL that gets a GET each minute while nothing is bad.",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Where the server remembers which alarms it has sent; under systemd, its state directory.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(min=4),
    default=MAX_CONNECTIONS,
    show_default=True,
    metavar="N",
    help="Maximum number of open connections.",
)
@click.option(
    "--log-mode",
    type=click.Choice(MODES, case_sensitive=False),
    default="plain",
    show_default=True,
    help="Format of the log; systemd prefixes lines with the journal's levels.",
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS, case_sensitive=False),
    default="info",
    show_default=True,
    help="The lowest level that is logged.",
)
def server(places: tuple[str, ...], nodes_file: str | None, **options: Any) -> None:  # noqa: ANN401 - as click has them
    """Serve backups to nodes on other machines.

    Without --nodes, URL is the backup to serve. HOST:PORT is the address to listen on; leave it
    out if systemd opens the socket.
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
    """Write a new token for a node to FILE, and print its hash for the server's list."""
    from cln_backup.backends.socket.token_file import create_token

    with told(as_json=as_json):
        shown = create_token(path)
        click.echo(json.dumps({"hash": shown}) if as_json else shown)


@click.command(
    cls=Command, epilog="\b\nExamples:\n  backup-cli takeover socket:backup.example:8700"
)
@_asks_for_json
@click.argument("url", metavar="URL")
def takeover(url: str, *, as_json: bool) -> None:
    """Make a server refuse the current writer of a backup, so that another node can start.

    First make sure that the old node never runs again: two running copies of a node lose funds.
    """
    from cln_backup.backends.socket.place import take_over

    with told(as_json=as_json):
        take_over(url)
        if as_json:
            click.echo(json.dumps({"backend_url": redacted(url)}))
            return
        click.echo("The current writer is refused from now on; the next one to start is accepted.")
