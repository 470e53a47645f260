"""Writes the man pages: of `backup-cli` from its help, of the node's commands from docs/cli.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cln_backup.cli.commands import cli
from cln_backup.cli.program import Program

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE: Final = Path(__file__).parent
_DOCUMENT: Final = HERE.parents[1] / "docs" / "cli.md"
_CHARACTERS: Final = {
    "\\": r"\e", "-": r"\-", "'": r"\(aq", "…": "...", "–": r"\(en", "×": r"\(mu",
}  # fmt: skip
_MARKUP: Final = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*|\[((?:`[^`]*`|[^\]`])*)\]\([^)]*\)|<[^>]*>")


def pages() -> dict[str, str]:
    """The text of each page, by the name of its file."""
    return {
        "backup-cli.1": _page("backup-cli", 1, _of_program()),
        "lightning-backup-status.7": _page(
            "lightning-backup-status", 7, _of_method("backup-status")
        ),
        "lightning-backup-compact.7": _page(
            "lightning-backup-compact", 7, _of_method("backup-compact")
        ),
    }


def _page(name: str, section: int, lines: Iterator[str]) -> str:
    head = f'.TH "{name.upper()}" "{section}" "" "cln-backup" "cln-backup"'
    return "\n".join([head, ".nh", ".ad l", *lines, ""])


def _text(plain: str) -> str:
    """A text as roff has it, one input line."""
    line = "".join(_CHARACTERS.get(character, character) for character in " ".join(plain.split()))
    return rf"\&{line}" if line.startswith(".") else line


def _marked(text: str) -> str:
    """The same of Markdown: code and strong words are bold, of links the text stays."""
    parts, at = [], 0
    for found in _MARKUP.finditer(text):
        parts.append(_text_part(text[at : found.start()]))
        strong = found[1] or found[2]
        if strong:
            parts.append(rf"\fB{_text_part(strong)}\fR")
        elif found[3]:
            parts.append(_marked(found[3]))
        at = found.end()
    parts.append(_text_part(text[at:]))
    line = "".join(parts)
    return rf"\&{line}" if line.startswith(".") else line


def _text_part(plain: str) -> str:
    return "".join(_CHARACTERS.get(character, character) for character in plain.replace("\n", " "))


def _of_program() -> Iterator[str]:
    assert isinstance(cli, Program)
    context = click.Context(cli, info_name="backup-cli", help_option_names=["-h", "--help"])
    first, *more = _paragraphs(cli)
    yield from (".SH NAME", rf"backup\-cli \- {_text(_uncapitalized(first))}")
    yield from (".SH SYNOPSIS", r"\fBbackup\-cli\fR [\fIoptions\fR] \fIcommand\fR ...")
    yield from (".SH DESCRIPTION", _text(first))
    for paragraph in more:
        yield from (".PP", _text(paragraph))
    yield ".SH OPTIONS"
    yield from _options(cli, context)
    for title, names in cli.sections(context):
        yield f'.SH "{_text(title.upper())}"'
        for name in names:
            yield from _of_command(cli.commands[name], context, name)
    yield from _exit_codes()
    yield from (".SH SEE ALSO", r"\fBlightning\-backup\-status\fR(7),")
    yield r"\fBlightning\-backup\-compact\fR(7), docs/cli.md of cln\-backup"


def _of_command(command: click.Command, parent: click.Context, name: str) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join(piece for piece in command.collect_usage_pieces(context))
    yield f'.SS "{_text(f"{context.command_path} {usage}")}"'
    for number, paragraph in enumerate(_paragraphs(command)):
        yield from ([".PP"] if number else [])
        yield _text(paragraph)
    yield from _options(command, context)
    if isinstance(command, click.Group):
        for part in command.list_commands(context):
            yield from _of_command(command.commands[part], context, part)


def _paragraphs(command: click.Command) -> list[str]:
    return [part for part in (command.help or "").replace("\b\n", "").split("\n\n") if part]


def _uncapitalized(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:].rstrip(".")


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield from (".TP", rf"\fB{_text(record[0])}\fR", _text(record[1]))


def _exit_codes() -> Iterator[str]:
    yield ".SH EXIT STATUS"
    for row in _rows(_section("Exit codes")):
        code, kind, meaning = row
        yield from (
            ".TP",
            rf"\fB{code}\fR",
            _marked(meaning if kind == "–" else f"{kind}: {meaning}"),
        )


def _of_method(name: str) -> Iterator[str]:
    """The page that `lightning-cli help NAME` shows."""
    section = _section(f"`lightning-cli {name}`")
    parts = [part for part in section.split("\n\n") if part and not part.startswith("|")]
    summary = {
        "backup-status": "the state of the backup, and how long the node waits for it",
        "backup-compact": "fold the history of the backup into one snapshot",
    }[name]
    given = {"backup-status": "", "backup-compact": r" [\fIforce\fR]"}[name]
    title = _text(name)
    yield from (".SH NAME", rf"{title} \- {summary}")
    yield from (".SH SYNOPSIS", rf"\fB{title}\fR{given}")
    yield from (".SH DESCRIPTION", r"A command of lightningd with the plugin \fBcln\-backup\fR.")
    rows = list(_rows(section))
    for part in parts:
        if part.startswith("    ") and rows:
            continue  # an example, of what the rows explain
        if part.startswith("    "):
            yield from (".PP", ".nf")
            yield from (_text_part(line[4:]) for line in part.split("\n"))
            yield ".fi"
        else:
            yield from (".PP", _marked(part))
    if rows:
        yield ".SH RETURN VALUE"
    for names, kind, meaning in rows:
        yield from (".TP", f"{_marked(names)} ({_text(kind)})", _marked(meaning))
    yield from (".SH SEE ALSO", r"\fBbackup\-cli\fR(1)")


def _section(heading: str) -> str:
    text = _DOCUMENT.read_text(encoding="utf-8")
    found = re.search(
        rf"^### {re.escape(heading)}\n\n(.*?)(?=^##+ )", text, re.DOTALL | re.MULTILINE
    )
    assert found is not None, heading
    return found[1].strip("\n")


def _rows(section: str) -> Iterator[list[str]]:
    """The rows of the table in a section, without its head."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    for line in lines[2:]:
        yield [cell.strip() for cell in line.strip("|").split(" | ")]


def main() -> None:
    """Writes all pages."""
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
