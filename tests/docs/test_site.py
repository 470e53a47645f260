"""The site of the documents builds without a warning, and works without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.documents import DOCS, DOCUMENTS, ROOT

if TYPE_CHECKING:
    from pathlib import Path

_LOADED = re.compile(
    r"""(?:<(?:link|script|img|iframe|source|object|embed)\b[^>]*?(?:href|src|data)\s*=\s*["']?"""
    r"""|url\(\s*["']?|@import\s+["']|\bfetch\(\s*["']|\bimport\(\s*["'])((?:https?:)?//[^\s"')]+)"""
)


def _foreign(text: str) -> list[str]:
    """The addresses that a browser would ask, without a click."""
    return _LOADED.findall(text)


@pytest.mark.timeout(600)  # seconds of work, which a busy machine makes many
def test_site_builds_without_a_warning_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", tmp_path / "trees", DOCS, site],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = [page.relative_to(DOCS) for page in DOCUMENTS if page.is_relative_to(DOCS)]
    assert all((site / page).with_suffix(".html").is_file() for page in pages)
    for path in site.rglob("*"):
        if path.suffix in {".html", ".css", ".js"}:
            assert _foreign(path.read_text(encoding="utf-8")) == [], path
    # The way from a row of the runbook to another one, and from another page.
    stops = (site / "tasks" / "when-the-node-stops.html").read_text(encoding="utf-8")
    assert 'id="damaged"' in stops
    assert 'href="#damaged"' in stops
    damaged = (site / "alarms" / "damaged.html").read_text(encoding="utf-8")
    assert 'href="../tasks/when-the-node-stops.html#damaged"' in damaged
    front = (site / "index.html").read_text(encoding="utf-8")
    assert "Quick start" in front
    assert 'href="tasks/limits.html"' in front
    assert (site / "searchindex.js").is_file()


def test_foreign_addresses_are_found() -> None:
    for text in (
        '<script async src="https://cdn.example/x.js">',
        '<link rel="stylesheet" href="//fonts.example/css">',
        "@font-face { src: url(https://fonts.example/a.woff2) }",
        '@import "https://fonts.example/css";',
    ):
        assert len(_foreign(text)) == 1, text
    for text in ('<a href="https://example.org/">', '<img src="_static/x.png">'):
        assert _foreign(text) == []
