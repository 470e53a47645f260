"""The terminal: its width, its colours, and tables that suit both."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Final

import click

from cln_backup.model.health import Level

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    Row: TypeAlias = tuple[str, str] | tuple[str, str, Level]

_NARROWEST: Final = 40
_WIDEST: Final = 120
"""Longer lines of text are hard to read."""

_COLOURS: Final = {Level.GOOD: "green", Level.WARNING: "yellow", Level.BAD: "red"}
_AFTER_SEPARATOR: Final = re.compile(r"/(?=[^/])|[?&,;=]")


def width() -> int | None:
    """The columns of the terminal that standard output is on; `None` if it is on none."""
    if not sys.stdout.isatty():
        return None
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal():
        return max(_NARROWEST, int(given))
    try:
        return max(_NARROWEST, os.get_terminal_size(sys.stdout.fileno()).columns)
    except OSError:
        return None


def painted(text: str, level: Level) -> str:
    """The text in the colour of a level; plain without a terminal, or with `NO_COLOR` set."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if plain or not sys.stdout.isatty():
        return text
    return click.style(text, fg=_COLOURS[level], bold=level is Level.BAD or None)


def show_table(*rows: Row) -> None:
    """Prints names and values, one pair a line; those with a level in its colour.

    On a terminal, values are wrapped beside the names.
    """
    names, columns = max(len(row[0]) for row in rows), width()
    room = None if columns is None else min(columns, _WIDEST) - names - 2
    for name, value, *level in rows:
        for number, line in enumerate(wrapped(value, room)):
            text = f"{'' if number else name:<{names}}  {line}"
            click.echo(painted(text, level[0]) if level else text)


def wrapped(text: str, columns: int | None) -> Iterator[str]:
    """The lines of a text of at most this width.

    A word that is too long, such as a URL, is broken after a separator, otherwise evenly.
    """
    if columns is None or len(text) <= columns:
        yield text
        return
    line = ""
    for word in text.split():
        joined = f"{line} {word}".lstrip()
        if len(joined) <= columns:
            line = joined
            continue
        if line:
            yield line
        *whole, line = _pieces(word, columns)
        yield from whole
    if line:
        yield line


def _pieces(word: str, columns: int) -> Iterator[str]:
    while len(word) > columns:
        ends = [found.end() for found in _AFTER_SEPARATOR.finditer(word, 0, columns + 1)]
        lines = -(-len(word) // columns)
        end = ends[-1] if ends and ends[-1] > columns // 3 else -(-len(word) // lines)
        yield word[:end]
        word = word[end:]
    yield word


def cut(text: str, columns: int | None) -> str:
    """The text, with an ellipsis if it is wider than this."""
    if columns is None or len(text) <= columns:
        return text
    return text[: max(0, columns - 1)] + "…"
