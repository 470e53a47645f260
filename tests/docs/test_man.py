"""The man pages are made from the help and docs/cli.md, and are shown without warnings."""

from __future__ import annotations

import ast
import re
import runpy
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from cln_backup.cli.commands import cli
from tests.docs import scenes
from tests.documents import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.docs.sandbox import Sandbox

_MAN = ROOT / "contrib" / "man"
_PAGES: dict[str, str] = runpy.run_path(str(_MAN / "make.py"))["pages"]()


@pytest.mark.parametrize("name", sorted(_PAGES))
def test_page_is_current(name: str) -> None:
    assert (_MAN / name).read_text(encoding="utf-8") == _PAGES[name], "run: make man"
    assert f'"contrib/man/{name}" = "share/man/man{name[-1]}/{name}"' in (
        ROOT / "pyproject.toml"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(_PAGES))
def test_page_has_no_faults(name: str) -> None:
    text = _PAGES[name]
    assert text.isascii()
    for line in text.splitlines():
        assert not re.match(r"'|\.(?![A-Z]{2}\b|nf$|fi$|nh$|ad l$)", line), line
        assert not re.search(r"[`\[]\w+`|\]\(", line), line
    if shutil.which("groff"):
        done = subprocess.run(
            ["groff", "-ww", "-man", "-Tascii", "-z", _MAN / name], capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")


def test_every_command_and_option_is_in_the_page() -> None:
    text = _PAGES["backup-cli.1"].replace("\\-", "-")
    for name, command in cli.commands.items():
        assert f'.SS "backup-cli {name} ' in text
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert option in text, (name, option)


def test_every_field_of_backup_status_is_in_its_page(machine: Sandbox, template: Path) -> None:
    """`lightning-cli help backup-status` shows this page."""
    machine.place(template)
    scenes.plain(machine)
    code, said = machine.run("lightning-cli backup-status")
    assert code == 0
    text = _PAGES["lightning-backup-status.7"]
    for name in ast.literal_eval(said):
        assert re.search(rf"^.*\\fB{name}\\fR.* \(", text, re.MULTILINE), name
