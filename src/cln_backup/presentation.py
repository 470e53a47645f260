"""How `backup-cli` shows things: notes, errors, tables, progress on a terminal."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from cln_backup.errors import BackupError, Damaged, ReplayFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cln_backup.backends.base import Size
    from cln_backup.change import Change
    from cln_backup.history import Holdings

Fields = dict[str, Any]


def report(error: BackupError, *, as_json: bool, known: Fields | None = None) -> None:
    """Says what went wrong, as text or as JSON; there, with what is known all the same."""
    if not as_json:
        click.echo(f"Error: {error}", err=True)
        return
    fields: Fields = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, Damaged):
        fields["offset_bytes"] = error.offset_bytes
    if isinstance(error, Damaged | ReplayFailed):
        fields["good_version"] = error.good_version
    click.echo(json.dumps({"error": fields} | (known or {})))


def warn_of_foreign_keys(faults: int) -> None:
    """Notes rows that refer to rows which are not there."""
    if faults:
        warn(
            f"{faults} rows refer to rows that are not there (foreign keys). The node's own "
            "database has them as well, from before the backup or from a migration."
        )


def show_notices(notices: list[str]) -> None:
    """Notes what was found of a backup when it was opened."""
    for notice in notices:
        warn(notice)


def warn(text: str) -> None:
    """A note, on standard error."""
    click.echo(f"Note: {text}", err=True)


@contextlib.contextmanager
def progress(total: int, *, as_json: bool) -> Iterator[Callable[[Change], None] | None]:
    """A bar with rate and time left, on a terminal; nothing elsewhere."""
    if as_json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("changes, {task.fields[rate]} a second, left:"),
        TimeLeft(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, rate="?")
        started = shown = time.monotonic()
        done = 0

        def step(_change: Change) -> None:
            nonlocal done, shown
            done += 1
            now = time.monotonic()
            if now - shown > 0.1:
                shown = now
                bar.update(task, completed=done, rate=f"{done / (now - started):.0f}")

        yield step


@contextlib.contextmanager
def working(what: str, *, as_json: bool) -> Iterator[None]:
    """Shows on a terminal that something is being done."""
    if as_json or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def show_table(*rows: tuple[str, str]) -> None:
    """Names and values, one a line."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")


def rows_of(held: Holdings) -> list[tuple[str, str]]:
    """What a backup consists of, as rows of a table; what is unknown is left out."""
    rows = []
    if held.encrypted is not None:
        rows.append(("encryption", held.cipher or "none"))
    if held.encrypted:
        slots = [
            str(key["label"]) if key["label"] == key["kind"] else f"{key['label']} ({key['kind']})"
            for key in held.keys or ()
        ]
        rows.append(("key slots", ", ".join(slots) or "none: nothing unlocks it"))
    if held.generations is not None and held.oldest_generation_at is not None:
        which = "" if held.generations == 1 else "the oldest "
        made = f"{which}made {moment(held.oldest_generation_at)}"
        rows.append(("generations", f"{held.generations}, {made}"))
    if held.space_bytes is not None:
        rows.append(("space used", f"{size(held.space_bytes)} of the disk"))
    return rows


def size(size_bytes: float) -> str:
    """A size in a unit that suits it."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def changes(number: int) -> str:
    """How many there are."""
    return "1 change" if number == 1 else f"{number} changes"


def amount(of: Size) -> str:
    """How large a backup is."""
    return f"{size(of['backupsize'])} in {changes(of['version_count'])}"


def moment(at: float) -> str:
    """A time since 1970, as the clock on the wall has it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def age(at: float) -> str:
    """How long ago that was, or how far in the future it is."""
    seconds = int(time.time() - at)
    if seconds < 0:
        return f"{_length(-seconds)} in the future: this machine's clock is or was wrong"
    return f"{_length(seconds)} ago"


def _length(seconds: int) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return "1 second" if seconds == 1 else f"{seconds} seconds"
