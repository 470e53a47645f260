"""Each code of a finding has its page in docs/alarms, and each page its code."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

from tests.documents import DOCS, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SOURCE = ROOT / "src" / "cln_backup"
_PAGES = {page.stem: page for page in (DOCS / "alarms").glob("*.md") if page.stem != "index"}
_HEADINGS = ["Why it matters", "What to do", "Example"]


def _calls(module: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            called = node.func
            if name in (getattr(called, "id", None), getattr(called, "attr", None)):
                yield node


def _constants(value: ast.expr) -> list[str]:
    """The texts that an expression has as its value, if each of them is written in it."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return [value.value]
    if isinstance(value, ast.IfExp):
        return [*_constants(value.body), *_constants(value.orelse)]
    return []


def _codes(source: str) -> set[str]:
    """The codes of the findings that a module makes, also through a function of its own."""
    module, found = ast.parse(source), set()
    makers = [("Finding", 0), ("Weakness", 0)]
    for function in ast.walk(module):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            given = [argument.arg for argument in function.args.args]
            shift = given[:1] in (["self"], ["cls"])
            makers += [
                (function.name, given.index(passed.id) - shift)
                for call in _calls(function, "Finding")
                for passed in call.args[:1]
                if isinstance(passed, ast.Name) and passed.id in given
            ]
    for maker, place in makers:
        for call in _calls(module, maker):
            named = [word.value for word in call.keywords if word.arg == "code"]
            for value in named or call.args[place : place + 1]:
                found.update(_constants(value))
    return found


def _kinds_of_the_follower() -> set[str]:
    text = (_SOURCE / "follower" / "messages.py").read_text(encoding="utf-8")
    said = text.partition("class Alarm(Message):")[2].partition("\n    name: str")[0]
    return set(re.findall(r'"(\w+)"', said))


def _in_source() -> set[str]:
    modules = [path.read_text(encoding="utf-8") for path in _SOURCE.rglob("*.py")]
    making = [source for source in modules if re.search(r"\b(Finding|Weakness)\(", source)]
    return {"halted"}.union(_kinds_of_the_follower(), *map(_codes, making))


def test_each_code_has_a_page_and_each_page_a_code() -> None:
    assert _kinds_of_the_follower() == {"replay", "damaged", "integrity", "content"}
    assert set(_PAGES) == _in_source()


def test_codes_are_found() -> None:
    source = """
def _bad(text, code, level):
    return Finding(code, level, text)
Finding("one", Level.GOOD, "text")
health.Finding(code="two", text="text")
_bad("text", "three", Level.BAD)
Finding("four" if late else "five", Level.BAD, "text")
"""
    assert _codes(source) == {"one", "two", "three", "four", "five"}


@pytest.mark.parametrize("code", sorted(_PAGES))
def test_page_has_what_one_looks_for(code: str) -> None:
    text = _PAGES[code].read_text(encoding="utf-8")
    assert re.match(rf"# .+\n\nCode: `{code}`\n\n\S", text)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == _HEADINGS
    assert re.search(r"## Example\n\n```\n.+\n```\n", text, re.DOTALL)


def test_index_leads_to_each_page() -> None:
    index = (DOCS / "alarms" / "index.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| \[`([\w-]+)`\]\(([\w-]+)\.md\) \| (?:bad|warning) \| ", index, re.MULTILINE
    )
    assert rows == [(code, code) for code in sorted(_PAGES)]


def _texts(path: Path) -> list[str]:
    source = path.read_text(encoding="utf-8")
    return [
        node.value
        for node in ast.walk(ast.parse(source if "docs/" in source else ""))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_pages_that_messages_name_are_there() -> None:
    said = "\n".join(text for path in _SOURCE.rglob("*.py") for text in _texts(path))
    named = set(re.findall(r"docs/[\w/.-]+\.md", said))
    assert "docs/alarms/content.md" in named
    for page in named:
        assert (ROOT / page).is_file(), page
