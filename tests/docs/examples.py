"""The commands of the documents, in their order: what is typed, and what is shown as its answer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAMS = (
    "backup-cli", "lightning-cli", "lightning-hsmtool", "lightningd",
    "apt", "aws", "chmod", "chown", "cp", "curl", "docker", "echo", "export", "gpg", "head",
    "install", "make", "mc", "mkdir", "mv", "pg_basebackup", "pip", "pipx", "podman", "psql",
    "promtool", "python3", "reckless", "rm", "rsync", "sha256sum", "sqlite3", "ssh", "systemctl",
    "touch", "useradd", "weed", "xdg-open", "man",
    "/opt/cln-backup/bin/pip", "/opt/cln-backup/bin/backup-cli",
)  # fmt: skip
"""The programs of which a block of code is taken for commands."""

NODES = re.compile(r"^(# name |\w+ +(file|dir|objects)://)")
"""The first line of a list of nodes, which a server reads."""

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_OTHER_LANGUAGES = {"text", "json", "sql", "ini", "yaml", "toml", "python", "html", "nix"}
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


class UnknownProgramError(Exception):
    """A block that looks like commands has a program that no test knows."""


class Example(NamedTuple):
    """A command of a document.

    Attributes:
        line: its number in the document.
        heading: the one that it is under.
        typed: the command, on one line; or a list of nodes, which is no command.
        shown: the lines that the document shows as its answer; `None` if it shows none.
        in_sentence: whether it is in a sentence, and not in a block of code or a table.
        page: the document's name, if the caller has set it.
    """

    line: int
    heading: str
    typed: str
    shown: list[str] | None
    in_sentence: bool = False
    page: str = ""


class _Block(NamedTuple):
    line: int
    language: str
    text: str


def examples(path: Path) -> list[Example]:
    """All commands of a document.

    Raises:
        UnknownProgramError: a block of code looks like commands of a program that is not known.
    """
    document = path.read_text(encoding="utf-8")
    if path.parent.name == "alarms":
        document = document.partition("\n## Example\n")[0]  # of what the log says
    found = [
        Example(line, "", typed, shown)
        for block in _blocks(document)
        for line, typed, shown in _of_block(block, path)
    ]
    found += [
        Example(number, "", command, None, not line.startswith("|"))
        for number, line in enumerate(_without_blocks(document).splitlines(), 1)
        for command in _SPAN.findall(line)
        if command.partition(" ")[0] in PROGRAMS and " " in command
    ]
    headings = _headings(document)
    return [
        each._replace(heading=next((name for at, name in headings if at < each.line), ""))
        for each in sorted(found, key=lambda each: each.line)
    ]


def _headings(document: str) -> list[tuple[int, str]]:
    lines = _without_blocks(document).splitlines()
    return [
        (number, line.lstrip("# ")) for number, line in enumerate(lines, 1) if line.startswith("#")
    ][::-1]


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def _without_blocks(document: str) -> str:
    text = _FENCE.sub(_blank, document)
    for block in _indented(text):
        text = text.replace(block.text, _blank_lines(block.text), 1)
    return text


def _blank_lines(text: str) -> str:
    return "\n" * text.count("\n")


def _blocks(document: str) -> Iterator[_Block]:
    for match in _FENCE.finditer(document):
        text = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
        yield _Block(document.count("\n", 0, match.start()) + 2, match[2], text)
    yield from _indented(_FENCE.sub(_blank, document))


def _indented(text: str) -> Iterator[_Block]:
    """Blocks of four spaces, which are not the next lines of an item of a list."""
    for match in re.finditer(r"(?<=\n\n)((?: {4}.*\n(?:\n(?= {4}))?)+)", text):
        before = re.split(r"\n(?=\S)", text[: match.start()])[-1]
        if not re.match(r"(\d+\.|[-*]) ", before):
            yield _Block(text.count("\n", 0, match.start()) + 1, "", match[1])


def _of_block(block: _Block, path: Path) -> Iterator[tuple[int, str, list[str] | None]]:
    """The commands in a block of code; of a session, with their answers."""
    if block.language in _OTHER_LANGUAGES:
        return
    assert block.language in {"", "sh", "console"}, f"a block of {block.language}"
    lines = [line.removeprefix("    ") for line in block.text.splitlines()]
    first = next((line for line in lines if line), "")
    if NODES.match(first):
        yield block.line, "\n".join(lines), None
        return
    is_session = False
    program = first.removeprefix("$ ").partition(" ")[0]
    if program not in PROGRAMS:
        looks_like = block.language or re.match(r"\$ |[a-z][\w./-]* [^=|\s]", first)
        if looks_like:
            raise UnknownProgramError(
                f"{path}:{block.line}: {program} is not among the known programs. If it is one, "
                "add it to PROGRAMS; if the block is none of commands, say ```text."
            )
        return
    number = block.line - 1
    typed: tuple[int, str, list[str] | None] | None = None
    continues = False
    for line in lines:
        number += 1
        is_session = is_session or line.startswith("$ ")
        if typed is not None and (continues or (line.startswith("  ") and not is_session)):
            typed = (typed[0], f"{typed[1].removesuffix(chr(92)).strip()} {line.strip()}", typed[2])
        elif line.startswith("$ ") or (line.strip() and not is_session):
            if typed is not None:
                yield typed
            typed = (number, line.removeprefix("$ ").strip(), [] if is_session else None)
        elif typed is not None and typed[2] is not None:
            typed[2].append(line)
        continues = typed is not None and typed[1].endswith("\\")
    if typed is not None:
        yield typed
