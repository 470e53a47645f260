"""`backup-cli standby`: keeps a directory on another machine ready to become the node's."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from cln_backup.backends import redacted, url_of
from cln_backup.cli.installation import plugin_path
from cln_backup.cli.presentation import moment, report, size, tell, warn, warn_of_foreign_keys
from cln_backup.model.continuity import STARTED_WELL

if TYPE_CHECKING:
    from cln_backup.cli.secrets import Command, Fields
    from cln_backup.operations.keyring import Secret
    from cln_backup.operations.promote import Promoted
    from cln_backup.operations.standby import Followed


def register(command: Command) -> None:
    """Adds the command to the program."""

    @command(
        "backup-cli standby socket:backup.example:8700 ~/.lightning/bitcoin\n"
        "backup-cli standby --promote socket:backup.example:8700 ~/.lightning/bitcoin"
    )
    @click.option(
        "--promote",
        "promotes",
        is_flag=True,
        help="Make DIR the node's. First make sure that the old node is off for good.",
    )
    @click.option(
        "--original",
        is_flag=True,
        help="With --promote: the old node wrote to this very directory or file, not a copy of it.",
    )
    @click.option(
        "--at-least",
        type=click.IntRange(min=1),
        metavar="VERSION",
        help="With --promote: refuse if the backup is older than this data version of the node.",
    )
    @click.argument("url", metavar="URL", callback=lambda _context, _parameter, url: url_of(url))
    @click.argument("directory", metavar="DIR", type=click.Path(file_okay=False))
    def standby(
        url: str,
        directory: str,
        *,
        promotes: bool,
        original: bool,
        at_least: int | None,
        as_json: bool,
        secret: Secret | None,
    ) -> Fields:
        """Keep DIR on another machine restored and ready, until it is needed.

        Follows the backup on a server or in a shared directory until it is stopped (Ctrl-C, or
        SIGTERM), and continues at the next start. With --json, prints a line for each change of
        the state.

        With --promote, fences the old node, which halts at its next change; replays everything
        that it stored; checks the database as a restore does, and puts it in place. Needs the
        backup that the node wrote to, not an older copy: without a server, say how you know
        (--original, --at-least).
        """
        from cln_backup.operations.promote import promote
        from cln_backup.operations.standby import follow

        if not promotes and (original or at_least is not None):
            raise click.UsageError("--original and --at-least need --promote.")
        if promotes:
            done = promote(
                url,
                directory,
                lambda text: None if as_json else click.echo(text),
                is_original=original,
                at_least=at_least,
                secret=secret,
                on_event=tell,
            )
            if not as_json:
                _tell_promoted(done, url, directory, unlocked_by_option=secret is not None)
            return done._asdict()
        line = _StatusLine(as_json=as_json)
        last = follow(url, directory, line.show, secret=secret, on_event=tell)
        line.end()
        if not as_json:
            click.echo(f"Stopped at data version {last.version}. The standby continues from there.")
        return {}


class _StatusLine:
    """The state of a standby: one line on a terminal, one for each change elsewhere."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._on_terminal = sys.stdout.isatty() and not as_json
        self._was_at_head: bool | None = None
        self._is_open = False

    def show(self, state: Followed) -> None:
        """Prints a state."""
        if self._as_json:
            fields = state._asdict() | {"trouble": None}
            if state.trouble is not None:
                kind, text = type(state.trouble).__name__, str(state.trouble)
                fields["trouble"] = {"type": kind, "message": text}
            click.echo(json.dumps(fields))
            sys.stdout.flush()
            return
        if state.trouble is not None:
            self.end()
            report(state.trouble, as_json=False)
            click.echo("The standby tries again, and stays as it is until then.", err=True)
            self._was_at_head = None
            return
        text = f"{moment(state.at)}  at data version {state.version}"
        text += ", the backup's last" if state.at_head else f" of {state.head_version}"
        if self._on_terminal:
            click.echo(f"\r{text}\x1b[K", nl=False)
            self._is_open = True
        elif state.at_head != self._was_at_head:  # a log would fill with one line a change
            click.echo(text)
        self._was_at_head = state.at_head
        sys.stdout.flush()

    def end(self) -> None:
        """Ends the line on a terminal."""
        if self._is_open:
            click.echo()
            self._is_open = False


def _tell_promoted(done: Promoted, url: str, directory: str, *, unlocked_by_option: bool) -> None:
    click.echo(
        f"Promoted: {done.path} is at data version {done.version}, the backup's last "
        f"({size(done.size_bytes)}). Integrity checks passed."
    )
    warn_of_foreign_keys(done.foreign_key_faults)
    shown = redacted(url)
    where = "was written; it names" if done.lock_made else "was there, and names"
    click.echo(f"backup.lock {where} the backup {shown}.")
    if unlocked_by_option:
        warn(
            "The plugin unlocks the backup by what the URL in backup.lock names, such as "
            "?key-file=/the/path. Add that before you start the node."
        )
    old_node = (
        "Make sure that the old node is off, and can never start again: two running copies of a "
        "node lose funds. It halts at its next change, but its supervisor may start it again."
    )
    steps = [old_node]
    if done.lacks_hsm_secret:
        steps.append(f"Put hsm_secret into {directory}.")
    steps += [
        f"Put this line into lightningd's configuration: important-plugin={plugin_path()}",
        f"Start Core-Lightning, and look for this in its log: {STARTED_WELL}",
    ]
    click.echo("Before the node runs here:")
    for number, step in enumerate(steps, 1):
        click.echo(f"{number}. {step}")
