"""Turns whatever ends a command of `backup-cli` into a message and an exit code."""

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

    A command speaks when its work is done. So a reader that went away is no error, and any other
    failure to write has a code of its own, which is not that of work that failed.
    """
    assert isinstance(sys.stdout, io.TextIOWrapper)
    assert isinstance(sys.stderr, io.TextIOWrapper)
    encoding, on_terminal = sys.stdout.encoding, sys.stdout.isatty()
    sys.stdout = _Output(sys.stdout.detach(), encoding, "backslashreplace", None, on_terminal)
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
    """Errors of what runs inside are told, and end the command with their exit code.

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
        return StorageError("There is not enough memory for this. Nothing was changed.")
    if error.filename is None and not _has_working_directory():
        return NotFound(
            "The working directory was removed, so no relative path leads anywhere. Change to "
            "another one, or name absolute paths; nothing was done."
        )
    where = "" if error.filename is None else f" {os.fsdecode(error.filename)}"
    return StorageError(f"Cannot go on with{where or ' this'}: {error.strerror or error}")


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


class _Output(io.TextIOWrapper):
    """Standard output: where it cannot be written to, `OutputLost` is raised, once.

    What the terminal's encoding has no sign for is written as an escape sequence.
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
            f"Cannot write to standard output: {error.strerror}. What was asked for is done; only "
            f"what there is to say about it is lost, from here on: {text}",
            reader_is_gone=error.errno == errno.EPIPE,
        ) from None


class _Errors(io.TextIOWrapper):
    """Standard error: where nobody hears, the work goes on."""

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
    """Has what is still to be written go nowhere, also at the end of the process."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, fd)
    os.close(nowhere)
