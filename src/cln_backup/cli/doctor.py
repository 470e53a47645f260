"""`backup-cli doctor`: everything that an operator can get wrong, with what to do about it."""

from __future__ import annotations

import json
import textwrap
import time
from typing import TYPE_CHECKING, Final

import click

from cln_backup.backends import place_at, redacted
from cln_backup.cli.installation import plugin_path
from cln_backup.cli.parameters import optional_url, the_node_here
from cln_backup.cli.presentation import working
from cln_backup.cli.terminal import painted, width
from cln_backup.model.errors import BackupError, Interrupted
from cln_backup.model.health import Finding, Level, worst

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cln_backup.cli.presentation import Fields
    from cln_backup.cli.secrets import Command
    from cln_backup.operations.doctor.examine import Examined
    from cln_backup.operations.doctor.write_test import WriteTest
    from cln_backup.operations.keyring import Secret

EXIT_CODES: Final = {Level.GOOD: 0, Level.WARNING: 30, Level.BAD: 31}
"""For monitoring; no error of this program has these codes."""

_WORST_FIRST: Final = (Level.BAD, Level.WARNING, Level.GOOD)
_MARGIN: Final = 9


def register(command: Command) -> None:
    """Adds the command to the others; `command` is the decorator that makes one."""

    @command(
        "backup-cli doctor\n"
        "backup-cli doctor --lightning-dir ~/.lightning/bitcoin\n"
        "backup-cli doctor --write-test --lightning-dir ~/.lightning/bitcoin\n"
        "backup-cli doctor dir:///mnt/backup/node"
    )
    @click.option(
        "--lightning-dir",
        type=click.Path(file_okay=False, readable=False),
        help="The node's network directory, such as ~/.lightning/bitcoin. Without it, only the "
        "backup at URL is examined; without both, the only node on this machine.",
    )
    @click.option(
        "--write-test",
        "tests_writing",
        is_flag=True,
        help="Also store 50 changes in a scratch backup beside the backup, read them back, remove "
        "it, and say how long a node would have waited.",
    )
    @click.option("--quiet", is_flag=True, help="Show only what is not good.")
    @click.option(
        "--hsm-secret-is-copied",
        is_flag=True,
        help="Remember in backup.state that you have copied hsm_secret to a separate place.",
    )
    @optional_url
    def doctor(
        url: str | None,
        lightning_dir: str | None,
        *,
        tests_writing: bool,
        quiet: bool,
        hsm_secret_is_copied: bool,
        as_json: bool,
        secret: Secret | None,
    ) -> Fields:
        """Examine a node and its backup: what is right, what is wrong, and what to do.

        The node may run, be stopped, or be broken. Nothing is changed. Exit code 0 if all is good,
        30 if there are warnings, 31 if something is bad.
        """
        from cln_backup.operations.doctor.examine import examine, remember_copy_of_hsm_secret

        if url is None and lightning_dir is None:
            lightning_dir = the_node_here()
        if hsm_secret_is_copied:
            if lightning_dir is None:
                raise click.UsageError("--hsm-secret-is-copied needs --lightning-dir.")
            remember_copy_of_hsm_secret(lightning_dir)
        with working("Examining", as_json=as_json):
            examined = examine(lightning_dir, url, plugin_path(), secret=secret)
            findings, tested = [*examined.findings, *_of_state(examined)], None
            if tests_writing and examined.url is not None:
                tested, more = _write_test(examined.url)
                findings += more
        findings.sort(key=lambda finding: _WORST_FIRST.index(finding.level))
        code = EXIT_CODES[worst(findings)]
        if as_json:
            click.echo(json.dumps(_fields(examined, findings, tested)))
        else:
            _show(findings, quiet=quiet)
        if code:
            raise click.exceptions.Exit(code)
        return {}


def _of_state(examined: Examined) -> list[Finding]:
    """The findings of the page and the alarms: protection, the follower's alarm, the last drill."""
    from msgspec import ValidationError

    from cln_backup.monitor.state import findings, state_of
    from cln_backup.operations.doctor.looking import cannot_look

    if not examined.state:
        return []
    now = time.time()
    try:
        found = findings(state_of(examined.state | {"at": now}), now)
    except ValidationError as error:
        return [cannot_look("the answer to backup-status", str(error))]
    # A node that does not run is not protected, whatever its files say.
    return [each for each in found if examined.runs or each.level is not Level.GOOD]


def _write_test(url: str) -> tuple[WriteTest | None, list[Finding]]:
    from cln_backup.operations.doctor.write_test import judge, write_test

    try:
        tested = write_test(place_at(url))
    except Interrupted:
        raise
    except BackupError as error:
        return None, list(judge(error))
    return tested, list(judge(tested))


def _fields(examined: Examined, findings: Sequence[Finding], tested: WriteTest | None) -> Fields:
    return {
        "level": worst(findings).value,
        "backend_url": None if examined.url is None else redacted(examined.url),
        "findings": [each._asdict() | {"level": each.level.value} for each in findings],
        "write_test": None if tested is None else tested._asdict(),
    }


def _show(findings: Sequence[Finding], *, quiet: bool) -> None:
    columns = width()
    for finding in findings:
        if finding.level is Level.GOOD and quiet:
            continue
        name = finding.level.value
        label = (name.upper() if finding.level is Level.BAD else name).ljust(_MARGIN)
        lines = _wrapped(finding.text, columns)
        if finding.remedy:
            lines += _wrapped(f"{finding.remedy} [{finding.code}]", columns)
        click.echo(painted(label, finding.level) + lines[0])
        for line in lines[1:]:
            click.echo(" " * _MARGIN + line)
    if quiet and worst(findings) is Level.GOOD:
        return
    counts = {level: sum(1 for each in findings if each.level is level) for level in Level}
    warnings = "1 warning" if counts[Level.WARNING] == 1 else f"{counts[Level.WARNING]} warnings"
    click.echo(
        f"\n{counts[Level.BAD]} bad, {warnings}, {counts[Level.GOOD]} good."
        + ("" if worst(findings) is Level.GOOD else " docs/alarms has a page for each [code].")
    )


def _wrapped(text: str, columns: int | None) -> list[str]:
    """The lines of a text on a terminal; one line elsewhere, where others search for it."""
    if columns is None:
        return [text]
    return textwrap.wrap(text, columns - _MARGIN, break_long_words=False, break_on_hyphens=False)
