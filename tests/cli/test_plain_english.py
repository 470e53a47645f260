"""Words in the documents that read like a translation, which searches and readers miss."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_DOCUMENTS = [_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md"))]
_USUAL_WORDS = {
    r"\bstands?\b": "is",
    r"\bbehind\b(?!\s+a\s+(firewall|tunnel))": "after, or older than",
    r"\banew\b": "again",
    r"\bwhoever\b": "anyone who, or a subject",
    r"(?<!there )\bis no (?!longer)": "is not a",
    r"\bnameless\b": "temporary (unlinked)",
    r"(?:\A|\n\n|\.\s)(?-i:What|Who) (?![^.]*\?)": "a subject that names the thing",
}


def _prose(document: Path) -> str:
    """A document without what it quotes: code and messages."""
    text = document.read_text(encoding="utf-8")
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^ {4,}.*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`]*`", "", text)


@pytest.mark.parametrize("document", _DOCUMENTS, ids=lambda path: str(path.name))
def test_documents_use_the_usual_words(document: Path) -> None:
    text = _prose(document)
    found = [
        f"{match[0].strip()!r}: write {usual}"
        for unusual, usual in _USUAL_WORDS.items()
        for match in re.finditer(unusual, text, re.IGNORECASE)
    ]
    assert not found


def test_unusual_words_are_found() -> None:
    text = "What stands behind it is no record.\nWhoever writes it anew has a nameless file."
    for unusual in _USUAL_WORDS:
        assert re.search(unusual, text, re.IGNORECASE), unusual
