"""The site of these documents: `make docs` builds it with Sphinx.

The pages are written for the forge, and read by Sphinx as they are, but for three things: the
site's front page begins with the README, the tree of the pages at its side is `_TREE`, and what is
not in this directory is named there without a link.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

project = "cln-backup"
html_title = "cln-backup"
html_theme = "furo"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
extensions = ["myst_parser"]
highlight_language = "none"
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]
suppress_warnings = ["misc.highlighting_failure"]  # an example may have an ellipsis

_README = Path(__file__).parents[1] / "README.md"
_ELSEWHERE = r"\[([^]]*)\]\((?:(?:\.\./)+\w+/\w+\.(?:py|c)|LICENSE)\)"
"""A link to a file that has no page."""

_TREE = {
    "Something happened": [
        "tasks/when-the-node-stops",
        "tasks/whole-node",
        "tasks/restoring",
        "alarms/index",
        "tasks/interrupted-migration",
    ],
    "Tasks": ["questions"],  # and all others
    "For reference": ["cli", "server", "engines", "design", "format", "wire", "benchmarks"],
}


_PLACED = [page for pages in _TREE.values() for page in pages]
_TASKS = sorted(f"tasks/{path.stem}" for path in Path(__file__).parent.glob("tasks/*.md"))
_TREE["Tasks"] += [task for task in _TASKS if task not in _PLACED]


def _tree(caption: str, pages: list[str]) -> str:
    entries = "\n".join(pages)
    return f"\n```{{toctree}}\n:caption: {caption}\n:hidden:\n\n{entries}\n```\n"


def _front(index: str) -> str:
    """The README, with the list of the documents in place of its own, and the tree."""
    readme = _README.read_text(encoding="utf-8").replace("](docs/", "](")
    begin, _, rest = readme.partition("## Documents\n")
    _, _, end = rest.partition("\n## ")
    trees = "".join(_tree(caption, pages) for caption, pages in _TREE.items())
    return f"{begin}{index.replace('# ', '## ', 1)}\n## {end}{trees}"


def _read(_app: Sphinx, page: str, source: list[str]) -> None:
    """Makes of a page what Sphinx reads."""
    text = source[0]
    if page == "index":
        text = _front(text)
    if page.startswith("alarms/") and page != "alarms/index":
        # Not in the tree: it would be longer than all else, and take most of the time.
        text = f"---\norphan: true\n---\n{text}"
    text = re.sub(r'<a id="([^"]+)"></a>', r"[]{#\1}", text)
    text = re.sub(r"\]\((?:\.\./)+README\.md(#[^)]*)?\)", r"](/index.md\1)", text)
    source[0] = re.sub(_ELSEWHERE, r"\1", text)


def _note_anchors(app: Sphinx, doctree: nodes.document) -> None:
    """Lets other pages lead to the anchors of this one."""
    slugs = app.env.metadata[app.env.docname].setdefault("myst_slugs", {})
    for name, anchor in doctree.nameids.items():
        slugs.setdefault(name, (0, anchor, name))


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _read)
    app.connect("doctree-read", _note_anchors)
