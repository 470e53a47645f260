"""Every command in the documents is run, in the order of its page; its shown answer is compared."""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING

import click
import pytest

from cln_backup.cli.commands import cli
from cln_backup.plugin.manifest import MANIFEST
from tests.docs import scenes
from tests.docs.examples import NODES, Example, UnknownProgramError, examples
from tests.docs.shape import unlike
from tests.documents import DOCUMENTS, name
from tests.histories import assert_same_database

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.docs.sandbox import Sandbox

_NOT_RUN = {
    "lightning-hsmtool": "part of Core Lightning",
    "lightningd": "part of Core Lightning",
    "lightning-cli graceful": "the simulated node has no peers",
    "systemctl": "needs systemd; tests/socket/test_units.py has the units checked by it",
    "useradd": "changes the users of the machine",
    "install": "needs another user",
    "make": "of a checkout; CI runs it",
    "python3": "the installation; .ci/other-pythons tries it",
    "export": "the installation",
    "pip": "the installation",
    "pipx": "the installation; tests/packaging/test_installing.py tries it",
    "/opt/cln-backup/bin/pip": "the installation",
    "apt": "the installation; tests/packaging/test_debian.py tries it",
    "rm -r /opt/cln-backup": "the installation",
    "gpg": "needs a key",
    "podman": "needs an engine; tests/packaging/test_container.py has the constraints",
    "ssh": "needs another machine",
    "psql": "of PostgreSQL's own; tests/postgres has servers",
    "pg_basebackup": "of PostgreSQL's own; tests/postgres has servers",
    "aws": "needs an account",
    "mc": "needs a store",
    "echo 'fs.configure": "needs a store; tests/objects has stores",
}
"""Beginnings of commands that are not run, and why."""

_OF_LIGHTNINGD = {"graceful", "help", "stop"}

_OF_A_DOCTOR = (0, 30, 31)
"""Its exit codes: it tells of the tests' own machine, as of its disk and clock."""

_ENGINES = ("postgresql:", "s3:", "gs:", "az:")
"""URLs that need an engine: tests/postgres and tests/objects run these commands with one."""

_PLACEHOLDERS = {
    "URL", "DIR", "FROM", "TO", "PATH", "NAME", "FILE", "KEY", "VERSION", "DATABASE", "…",
    "HOST:PORT", "file://PATH.dropped-N",
}  # fmt: skip

_SCENES: dict[str, Callable[[Sandbox], None]] = {
    "README.md": scenes.bare,
    "docs/cli.md: `backup-cli init`": scenes.bare,
    "docs/cli.md: `backup-cli copy`": scenes.to_be_copied,
    "docs/cli.md: `backup-cli log`": scenes.plain,
    "docs/cli.md: `backup-cli takeover`": scenes.served,
    "docs/cli.md: `backup-cli standby`": scenes.waiting,
    "docs/server.md": scenes.bare,
    "docs/tasks/another-machine.md": scenes.bare,
    "docs/tasks/compaction.md": scenes.plain,
    "docs/tasks/interrupted-migration.md": scenes.migrating,
    "docs/tasks/moving-from-backup-plugin.md": scenes.in_a_file,
    "docs/tasks/moving-the-backup.md": scenes.in_a_file,
    "docs/tasks/restoring.md": scenes.lost,
    "docs/tasks/standby.md": scenes.waiting,
    "docs/tasks/when-the-node-stops.md": scenes.ahead,
    "docs/tasks/whole-node.md": scenes.bare,
}
"""The state in which a page, or a section of docs/cli.md, begins; otherwise it is `protected`."""

_LOOK = "backup-cli restore --words /mnt/backup/node /tmp/look.sqlite3 && rm /tmp/look.sqlite3"
_RESTORE = "backup-cli restore --words /mnt/backup/node ~/.lightning/bitcoin"
_WHOLE = (
    "backup-cli restore --node ~/.lightning/bitcoin --words --old-node-is-off --original "
    "/mnt/backup/node"
)
_REMOVE = "backup-cli key remove /mnt/backup/node key-file"
_INIT_FILE = "backup-cli init --lightning-dir ~/.lightning/bitcoin file:///mnt/backup/node.bkp"
_AGAIN: dict[tuple[str, str], Callable[[Sandbox], None]] = {
    ("README.md", "backup-cli restore --node ~/.lightning/bitcoin --words --dry"): (
        scenes.whole_lost
    ),
    (
        "docs/cli.md",
        f"{_INIT_FILE}\nDatabase does not exist",
    ): scenes.new,
    ("docs/cli.md", "backup-cli snapshot"): scenes.ahead,
    ("docs/cli.md", "backup-cli undo-migration"): scenes.migrating,
    ("docs/cli.md", "backup-cli rollforward"): scenes.older,
    ("docs/cli.md", "backup-cli restore file:"): scenes.lost_file,
    ("docs/cli.md", "backup-cli status /mnt/backup/encrypted"): scenes.paper,
    ("docs/cli.md", "backup-cli verify file:///mnt/backup/bad.bkp"): scenes.damaged,
    ("docs/cli.md", "backup-cli compact --json"): scenes.protected,
    ("docs/engines.md", "backup-cli token"): scenes.bare,
    ("docs/server.md", "backup-cli token"): scenes.bare,
    ("docs/tasks/compaction.md", "backup-cli compact"): scenes.plain,
    ("docs/tasks/when-the-node-stops.md", "backup-cli rollforward"): scenes.older,
    ("docs/tasks/whole-node.md", "backup-cli restore --node ~/.lightning/bitcoin --words --dry"): (
        scenes.whole_lost
    ),
    ("docs/tasks/when-the-node-stops.md", "backup-cli verify"): scenes.plain,
}
"""Where a page tells of another case: the beginning of a command and its answer; the state then."""


_MEANWHILE = {
    ("docs/server.md", "backup-cli init --encrypt"): scenes.another_node,
}
"""What happens before a command, on the same machine."""


def _anything(_machine: Sandbox) -> None:
    pass


def _restored(machine: Sandbox) -> None:
    assert_same_database(machine.database, machine.root / "databases" / "310.sqlite3")


def _whole(machine: Sandbox) -> None:
    assert_same_database(machine.database, machine.root / "databases" / "words.sqlite3")
    found = {str(path.relative_to(machine.home)) for path in machine.home.rglob("*")}
    names = ("hsm_secret", "backup.lock", "backup.key")
    assert found >= {".lightning/config", *(f".lightning/bitcoin/{name}" for name in names)}


def _only_looked(machine: Sandbox) -> None:
    assert not machine.path(_LOOK.rsplit(maxsplit=1)[-1]).exists()
    assert "?key-file=" in machine.url


def _without_the_key_of_the_lost_machine(machine: Sandbox) -> None:
    url = machine.documented(machine.url)
    assert machine.run(f"backup-cli status '{url}'").code == 0
    assert machine.run("backup-cli status --key-file /mnt/old.key /mnt/backup/node").code == 17


_OUTCOMES = {
    ("README.md", _LOOK): _only_looked,
    ("docs/tasks/restoring.md", _RESTORE): _restored,
    ("docs/tasks/whole-node.md", _WHOLE): _whole,
    ("docs/tasks/restoring.md", _REMOVE): _without_the_key_of_the_lost_machine,
}
"""What is so after a command of a page."""


def _stories() -> dict[str, list[Example]]:
    """Commands of one machine: of a page, of a section of docs/cli.md, or of all alarms."""
    found: dict[str, list[Example]] = {}
    for document in DOCUMENTS:
        page = name(document)
        for example in examples(document):
            title = f"{page}: {example.heading}" if page == "docs/cli.md" else page
            title = "docs/alarms" if document.parent.name == "alarms" else title
            found.setdefault(title, []).append(example._replace(page=page))
    return found


_STORIES = _stories()
_ALL = [example for story in _STORIES.values() for example in story]


def _told(example: Example) -> str:
    return "\n".join([example.typed, *(example.shown or ())])


def _is_left_out(typed: str) -> bool:
    return typed.startswith(tuple(f"{each} " for each in _NOT_RUN)) or typed in _NOT_RUN


def _is_only_named(example: Example) -> bool:
    """Whether a command is not meant to be typed as it is: a synopsis, or a name in a sentence."""
    words = shlex.split(example.typed, comments=True)
    if words[0] == "lightning-cli":
        return example.in_sentence
    places = any("/" in each or each.startswith("socket:") for each in words[1:])
    missing = any(
        each.strip("[]|().") in _PLACEHOLDERS or re.match(r"\[[^:]", each) for each in words
    )
    engine = any(each.startswith(_ENGINES) for each in words)
    return missing or engine or not (places or example.shown)


def _check_names(typed: str) -> None:
    """Requires that a command of `backup-cli` is there, with its options."""
    words = [each.strip("[]|") for each in shlex.split(typed, comments=True)]
    known: click.Command = cli
    options = {option for each in known.params for option in (*each.opts, *each.secondary_opts)}
    for word in words[1:]:
        if isinstance(known, click.Group) and word in known.commands:
            known = known.commands[word]
            options |= {o for each in known.params for o in (*each.opts, *each.secondary_opts)}
        elif word.startswith("--"):
            assert word.partition("=")[0] in options | {"--help"}, typed
    assert known is not cli or len(words) == 1 or words[1].startswith("-"), typed


def _is_run(example: Example) -> bool:
    return not (
        NODES.match(example.typed) or _is_left_out(example.typed) or _is_only_named(example)
    )


@pytest.mark.parametrize(
    "title", [title for title in _STORIES if any(map(_is_run, _STORIES[title]))]
)
def test_commands_do_what_the_page_says(title: str, template: Path, machine: Sandbox) -> None:
    first = True
    seen = set()
    for example in _STORIES[title]:
        typed = example.typed
        if NODES.match(typed):
            machine.list_nodes(typed)
            continue
        if not _is_run(example) or (example.shown is None and typed in seen):
            continue
        seen.add(typed)
        again = [
            scene
            for (page, begin), scene in _AGAIN.items()
            if page == example.page and _told(example).startswith(begin)
        ]
        if first or again:
            machine.place(template)
            if first and not again:
                again = [_SCENES.get(title, scenes.protected)]
            again[-1](machine)
            first = False
        for (page, begin), happen in _MEANWHILE.items():
            if page == example.page and typed.startswith(begin):
                happen(machine)
        code, said = machine.run(typed)
        _OUTCOMES.get((example.page, typed), _anything)(machine)
        where = f"{example.page}:{example.line}: {typed}\n{machine.documented(said)}"
        shown = example.shown
        if typed.startswith("backup-cli doctor"):
            assert code in _OF_A_DOCTOR, where
            shown = shown and ["…", shown[-1]]
        else:
            fails = any(line.startswith("Error: ") for line in shown or ())
            assert (code != 0) == fails, where
        if shown is not None:
            difference = unlike(shown, machine.documented(said))
            assert not difference, f"{example.page}:{example.line}: {typed}\n{difference}"


@pytest.mark.parametrize("title", sorted(_STORIES))
def test_commands_that_are_named_are_there(title: str) -> None:
    for example in _STORIES[title]:
        if example.typed.startswith("backup-cli "):
            _check_names(example.typed)
        elif example.typed.startswith("lightning-cli "):
            method = example.typed.split()[1]
            assert method in _OF_LIGHTNINGD or f'"{method}"' in json.dumps(MANIFEST), method


@pytest.mark.parametrize("block", ["```\nfrobnicate --all\n```\n", "\n\n    $ frobnicate\n"])
def test_unknown_program_is_refused(block: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n{block}")
    with pytest.raises(UnknownProgramError, match=r"page\.md:[45]: frobnicate"):
        examples(page)


def test_commands_are_found_in_lists_and_sessions_and_on_two_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n\n1. First:\n\n   ```\n   cp a \\\n     b\n   rm a\n   ```\n\nThen:\n\n"
        "    $ backup-cli status URL\n    backup  URL\n\n| `mv a b` | `text` |\nNot `rm b`.\n"
    )
    assert examples(page) == [
        Example(6, "A page", "cp a b", None),
        Example(8, "A page", "rm a", None),
        Example(13, "A page", "backup-cli status URL", ["backup  URL"]),
        Example(16, "A page", "mv a b", None),
        Example(17, "A page", "rm b", None, in_sentence=True),
    ]


def test_answer_of_another_shape_is_found() -> None:
    shown = ["Good up to data version 300: all 102 changes were replayed.", "…", "The end"]
    said = "Note: a\nGood up to data version 7: all 1 change were replayed.\nmore\nThe end\n"
    assert not unlike(shown, said)
    assert unlike(shown, said.replace("Good", "Bad"))
    assert unlike(shown, said.replace("The end", "The beginning"))
    assert unlike(shown[:1], said)
    assert not unlike(['{"a": 1, "b": [{"c": null}]}'], '{"a": 2, "b": [{"c": null}, {}]}')
    assert unlike(['{"a": 1}'], '{"a": "1"}')


def test_most_commands_are_run() -> None:
    run = [each.typed for each in _ALL if _is_run(each)]
    assert len(run) > 70
    for command in cli.commands:
        assert any(each.startswith(f"backup-cli {command} ") for each in run), command


def test_reasons_are_needed() -> None:
    for begin in _NOT_RUN:
        assert any(each.typed.startswith(begin) for each in _ALL), begin
    for page, begin in [*_AGAIN, *_MEANWHILE, *_OUTCOMES]:
        assert any(each.page == page and _told(each).startswith(begin) for each in _ALL), begin
    assert set(_SCENES) <= set(_STORIES)
