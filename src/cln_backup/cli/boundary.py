"""Turns errors and signals of a `backup-cli` command into a message and an exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from cln_backup.cli.presentation import report
from cln_backup.model.errors import (
    BackupError,
    NotFound,
    OutputLost,
    StorageError,
    broken_installation,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SHOWN_CHARACTERS = 300


def speak(main: Callable[[], object]) -> int:
    """Runs the command line; returns the exit code.

    A command prints its result when its work is done. So a reader that went away is not an error,
    and any other failure to write has an exit code of its own, unlike that of failed work.
    """
    assert isinstance(sys.stdout, io.TextIOWrapper)
    assert isinstance(sys.stderr, io.TextIOWrapper)
    encoding, on_terminal = sys.stdout.encoding, sys.stdout.isatty()
    sys.stdout = _Output(sys.stdout.detach(), encoding, "backslashreplace", None, on_terminal)
    # The terminal's width is asked for at this one, and the earlier one is detached now.
    sys.__stdout__ = sys.stdout  # type: ignore[misc]
    encoding = sys.stderr.encoding
    sys.stderr = _Errors(sys.stderr.detach(), encoding, "backslashreplace", None, True)
    try:
        with told(as_json=False):
            main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except click.exceptions.Exit as ended:
        return ended.exit_code
    return 0


@contextlib.contextmanager
def told(*, as_json: bool) -> Iterator[None]:
    """Reports errors raised inside, and ends the command with their exit code.

    Raises:
        click.exceptions.Exit, click.ClickException.
    """
    try:
        yield
    except OutputLost as error:
        if error.reader_is_gone:
            raise click.exceptions.Exit(0) from None
        _end(error, as_json=False)
    except BackupError as error:
        _end(error, as_json=as_json)
    except (ImportError, MemoryError, OSError) as error:
        _end(_explained(error), as_json=as_json)


def _end(error: BackupError, *, as_json: bool) -> NoReturn:
    with contextlib.suppress(OutputLost):
        report(error, as_json=as_json)
    raise click.exceptions.Exit(error.exit_code) from None


def _explained(error: ImportError | MemoryError | OSError) -> BackupError:
    if isinstance(error, ImportError):
        return broken_installation(error)
    if isinstance(error, MemoryError):
        return StorageError("Not enough memory for this command. Nothing was changed.")
    if error.filename is None and not _has_working_directory():
        return NotFound(
            "The current working directory was removed, so relative paths cannot be used. Nothing "
            "was done. Change to another directory, or use absolute paths."
        )
    where = "" if error.filename is None else f" {os.fsdecode(error.filename)}"
    return StorageError(f"Cannot continue{where and ' with'}{where}: {error.strerror or error}")


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


class _Output(io.TextIOWrapper):
    """Standard output: if it cannot be written to, `OutputLost` is raised, once.

    Characters that the terminal's encoding does not have are written as escape sequences.
    """

    _last = ""

    def write(self, text: str, /) -> int:
        """As any text stream. Raises `OutputLost`."""
        self._last = text
        try:
            return super().write(text)
        except OSError as error:
            self._lost(error)

    def flush(self) -> None:
        """As any text stream. Raises `OutputLost`."""
        try:
            super().flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> NoReturn:
        _write_to_nowhere(self.fileno())
        text = self._last.strip()
        if len(text) > _SHOWN_CHARACTERS:
            text = text[:_SHOWN_CHARACTERS] + " …"
        raise OutputLost(
            f"Cannot write to standard output: {error.strerror}. The command has done its work; "
            f"only its output is lost, from here on: {text}",
            reader_is_gone=error.errno == errno.EPIPE,
        ) from None


class _Errors(io.TextIOWrapper):
    """Standard error: if it cannot be written to, the work continues."""

    def write(self, text: str, /) -> int:
        """As any text stream; never fails."""
        try:
            return super().write(text)
        except OSError:
            _write_to_nowhere(self.fileno())
        return len(text)

    def flush(self) -> None:
        """As any text stream; never fails."""
        try:
            super().flush()
        except OSError:
            _write_to_nowhere(self.fileno())


def _write_to_nowhere(fd: int) -> None:
    """Discards the output that is still to be written, also at the end of the process."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, fd)
    os.close(nowhere)
