"""Links in the documents: each leads to a file and a heading that exist."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.documents import DOCS, DOCUMENTS, ROOT, name

if TYPE_CHECKING:
    from pathlib import Path


def _prose(document: Path) -> str:
    """A document without its blocks of code, where `#` starts a comment."""
    text = document.read_text(encoding="utf-8")
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)


def _anchors(document: Path) -> list[str]:
    """GitHub's anchors: explicit ones, and headings in lower case with hyphens."""
    text = _prose(document)
    found = re.findall(r'<a id="([^"]+)"></a>', text)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower())
        found.append(words.replace(" ", "-"))
    return found


def _links(document: Path) -> list[str]:
    """Targets inside this project."""
    text = re.sub(r"`[^`\n]*`(?!\])", "", _prose(document))
    targets = re.findall(r"\]\(([^()\s]+)\)", text)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    for target in _links(document):
        path, _, anchor = target.partition("#")
        there = document.parent / path if path else document
        assert there.exists(), f"{name(document)}: {target}"
        if anchor:
            assert anchor in _anchors(there), f"{name(document)}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_no_anchor_is_there_twice(document: Path) -> None:
    anchors = _anchors(document)
    assert len(anchors) == len(set(anchors)), sorted(anchors)


def test_links_are_found() -> None:
    found = {name(document) for document in DOCUMENTS if _links(document)}
    assert {"README.md", "docs/tasks/restoring.md", "docs/cli.md", "docs/design.md"} <= found


def test_readme_leads_to_every_document() -> None:
    linked = {target.partition("#")[0] for target in _links(ROOT / "README.md")}
    assert linked >= {f"docs/{path.name}" for path in DOCS.glob("*.md")}


def test_index_leads_to_every_task() -> None:
    linked = {target.partition("#")[0] for target in _links(DOCS / "index.md")}
    assert linked >= {f"tasks/{path.name}" for path in (DOCS / "tasks").glob("*.md")}
