"""What the page about engines has one type is accepted by the program as it is written there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import SCHEMES, place_at
from cln_backup.backends.postgres.schema import RIGHTS
from cln_backup.cli.commands import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAGE = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")


def _blocks() -> Iterator[str]:
    """The code of the page: fenced, and indented."""
    yield from re.findall(r"^ *```\w*\n(.*?)^ *```", _PAGE, re.MULTILINE | re.DOTALL)
    yield from re.findall(r"^(?: {4,}.+\n)+", _PAGE, re.MULTILINE)


def _commands() -> list[str]:
    """Every command line of `backup-cli`, without the backslashes that break it."""
    lines = re.sub(r"\\\n +", "", "\n".join(_blocks())).splitlines()
    return [line.strip() for line in lines if line.strip().startswith("backup-cli ")]


@pytest.mark.parametrize("line", _commands())
def test_commands_are_accepted(line: str) -> None:
    _, name, *words = shlex.split(line)
    command = cli.commands[name]
    command.make_context(name, list(words), resilient_parsing=True)  # fails for unknown options
    urls = [word for word in words if word.partition(":")[0] in SCHEMES and "…" not in word]
    for url in urls:
        place_at(url)
    assert urls or "…" in line or name in {"server", "token"}


def test_rights_of_a_role_are_those_that_init_prints() -> None:
    assert f"```sql\n{RIGHTS}\n```" in _PAGE


def test_policies_are_json() -> None:
    for policy in re.findall(r"```json\n(.*?)```", _PAGE, re.DOTALL):
        assert json.loads(policy)["Statement"]
