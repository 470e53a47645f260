"""Words in documents, messages and comments that read like a translation."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.documents import DOCUMENTS, name

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(__file__).parents[2]
_SOURCE = _ROOT / "src" / "cln_backup"
_START = r"(?:\A|\n\n|\.\s)\s*"
_USUAL_WORDS = {
    r"\b(stands?|stood)\b": "is",
    r"\bbehind\b(?!\s+a\s+(firewall|tunnel))": "after, or older than",
    r"\banew\b(?!:)": "again",
    r"\bwho(m)?ever\b": "anyone who, or a subject",
    r"\b(nobody|somebody|everybody)\b": "another process, a user, an attacker",
    r"(?<!there )\b(is|are|was|were) no (?!longer|more)": "is not a",
    r"\b(is|are) (another\b(?! node)|others\b)": "differs",
    r"\b(go|goes|going|went) on\b": "continue",
    r"\bcannot be right\b": "invalid",
    r"\bwhere (it|that|this|one) is (not )?known\b": "if known, if unknown",
    r"\bwhere there (is|are|was|were)\b": "if there is",
    r"\bof before\b": "previous",
    r"\bfor ever\b": "forever",
    r"\b(takes?|taken|taking)\b[^.]{0,40}\bapart\b": "decode, parse",
    r"\b(lies|lay)\b": "is",
    r"\b(fit|belong) together\b": "match",
    r"\bof (no |any )?use\b": "useful, useless",
    r"\bmend(s|ed|ing)?\b": "repair, correct",
    r"\bwithout a word\b": "silently",
    r"\bthat which\b": "what",
    r"\bnameless\b": "temporary (unlinked)",
    rf"{_START}(?-i:What|Who|Whose) (?!was cut is kept|[^.]*\?)": "a subject that names the thing",
}


def _prose(document: Path) -> str:
    """A document without what it quotes: code and messages."""
    text = document.read_text(encoding="utf-8")
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^ {4,}.*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`]*`", "", text)


def _texts(module: Path) -> Iterator[tuple[int, str]]:
    """Messages, docstrings and comments, with their lines."""
    source = module.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


def _unusual(text: str) -> list[str]:
    return [
        f"{match[0].strip()!r}: write {usual}"
        for unusual, usual in _USUAL_WORDS.items()
        for match in re.finditer(unusual, text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_documents_use_the_usual_words(document: Path) -> None:
    assert not _unusual(_prose(document))


@pytest.mark.parametrize("package", sorted({path.name for path in _SOURCE.glob("*/")}))
def test_messages_and_comments_use_the_usual_words(package: str) -> None:
    found = [
        f"{module.relative_to(_ROOT)}:{line}: {fault}"
        for module in sorted((_SOURCE / package).rglob("*.py"))
        for line, text in _texts(module)
        for fault in _unusual(text)
    ]
    assert not found


def test_unusual_words_are_found() -> None:
    text = """What stands behind it is no record.
Whoever writes it anew, where there is room, goes on for ever without a word.
Nobody knows where it lies; it is of no use where that is not known.
It is another, and cannot be right. The writer of before takes it apart and mends that which
did not fit together in a nameless file."""
    for unusual in _USUAL_WORDS:
        assert re.search(unusual, text, re.IGNORECASE), unusual
    assert next(_texts(Path(__file__)))[0] == 1
