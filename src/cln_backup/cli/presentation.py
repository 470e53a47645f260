"""Output of `backup-cli`: notes, errors, tables, progress on a terminal."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from cln_backup.backends.events import Event, Noticed
from cln_backup.model.errors import BackupError, Damaged, ReplayFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cln_backup.backends.ticket import Size
    from cln_backup.model.change import Change

Fields = dict[str, Any]


def report(error: BackupError, *, as_json: bool, known: Fields | None = None) -> None:
    """Prints an error, as text or as JSON; JSON also has the fields that are known."""
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
    """Prints a note about rows that violate foreign keys."""
    if faults:
        warn(
            f"{faults} rows violate foreign keys. The node's own database has them as well, from "
            "before the backup or from a migration."
        )


def tell(event: Event) -> None:
    """Prints the events of a backup as notes on standard error."""
    if event.noticed in (Noticed.WAITING, Noticed.BACK):
        click.echo(event.text, err=True)
    else:
        warn(event.text)


class Noticing:
    """Collects the notices about a backup for the end of a command; prints waits at once.

    Attributes:
        texts: the notices.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, event: Event) -> None:
        """Receives an event."""
        if event.noticed is Noticed.FOUND:
            self.texts.append(event.text)
        else:
            tell(event)


def show_notices(notices: list[str]) -> None:
    """Prints the notices about a backup that was opened."""
    for notice in notices:
        warn(notice)


def warn(text: str) -> None:
    """A note, on standard error."""
    click.echo(f"Note: {text}", err=True)


class Meter:
    """Counts the bytes of changes processed, and estimates their total.

    The size of a change is known once it was read. Changes to come are estimated by the average of
    those before, without snapshots; at first, by the size of the backup.

    Attributes:
        done_bytes: of statements, and of database files.
    """

    def __init__(self, of: Size, passes: int = 1) -> None:
        """For a backup of this size, whose changes are processed `passes` times."""
        self._count, self._passes = of["version_count"], passes
        self._mean_bytes = of["backupsize"] / max(1, self._count)
        self._seen = self._transactions = self._transaction_bytes = self._pass_bytes = 0
        self.done_bytes = 0

    def add(self, change: Change) -> None:
        """Counts a change as processed."""
        if change.snapshot is not None:
            size_bytes = change.snapshot.size_bytes
        else:
            size_bytes = sum(map(len, change.transaction or ()))
            self._transactions += 1
            self._transaction_bytes += size_bytes
        self._seen += 1
        self.done_bytes += size_bytes
        if self._seen <= self._count:
            self._pass_bytes += size_bytes

    @property
    def total_bytes(self) -> float:
        """The estimated total; exact after the first pass."""
        mean_bytes = self._mean_bytes
        if self._transactions:
            mean_bytes = self._transaction_bytes / self._transactions
        left = max(0, self._count - self._seen)
        return self._passes * (self._pass_bytes + left * mean_bytes)


@contextlib.contextmanager
def progress(
    of: Size, *, as_json: bool, passes: int = 1
) -> Iterator[Callable[[Change], None] | None]:
    """A bar with bytes, rate and time left, on a terminal; nothing elsewhere."""
    if as_json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    meter = Meter(of, passes)
    columns = BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn()
    # Drawn by `step`: a thread would take turns with the replay.
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=meter.total_bytes)
        shown = time.monotonic()

        def step(change: Change) -> None:
            nonlocal shown
            meter.add(change)
            now = time.monotonic()
            if now - shown > 0.1:
                shown = now
                total = meter.total_bytes
                bar.update(task, completed=meter.done_bytes, total=total, refresh=True)

        yield step


@contextlib.contextmanager
def working(what: str, *, as_json: bool) -> Iterator[None]:
    """Shows on a terminal that work is in progress."""
    if as_json or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def size(size_bytes: float) -> str:
    """A size in a unit that suits it."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def changes(number: int) -> str:
    """A number of changes, in words."""
    return "1 change" if number == 1 else f"{number:,} changes"


def amount(of: Size) -> str:
    """The size of a backup, in words."""
    return f"{size(of['backupsize'])} in {changes(of['version_count'])}"


def moment(at: float) -> str:
    """A time since 1970, as local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def when(at: float) -> str:
    """A time since 1970, as local time and by its age."""
    return f"{moment(at)} ({age(at)})"


def age(at: float) -> str:
    """The age of a time, or how far in the future it is."""
    seconds = int(time.time() - at)
    if seconds < 0:
        return f"{_length(-seconds)} in the future: this machine's clock is or was wrong"
    return f"{_length(seconds)} ago"


def _length(seconds: int) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return "1 second" if seconds == 1 else f"{seconds} seconds"
