"""The documents of this project: the README, and all below docs."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def name(document: Path) -> str:
    """A document's path from the root of the project."""
    return str(document.relative_to(ROOT))
