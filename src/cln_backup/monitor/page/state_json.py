"""`/state.json`: the state of all nodes, for the page's script and for other programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cln_backup import __version__
from cln_backup.backends import redacted
from cln_backup.monitor.page.render import SHORT, facts, revision
from cln_backup.monitor.page.view import verdict, worst_verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cln_backup.monitor.page.view import NodeView

_FORMAT: Final = 1


def state_json(nodes: Sequence[NodeView], now: float, title: str = "") -> str:
    """The JSON of these nodes at a time in seconds since 1970."""
    whole = worst_verdict([verdict(node, now) for node in nodes])
    return json.dumps(
        {
            "format": _FORMAT,
            "release": __version__,
            "title": title,
            "at": now,
            "verdict": whole.value,
            "revision": revision(nodes, now),
            "nodes": [_node(node, now) for node in nodes],
        },
        ensure_ascii=False,
    )


def _node(view: NodeView, now: float) -> dict[str, Any]:
    state = None
    if view.state is not None:
        state = msgspec.to_builtins(view.state)
        state["backend_url"] = redacted(view.state.backend_url)
    found = verdict(view, now)
    return {
        "name": view.name,
        "verdict": found.value,
        "short": SHORT[found],
        "since": view.since,
        "findings": [finding._asdict() for finding in view.findings],
        "state": state,
        "shown": {fact.key: fact.text for fact in facts(view, now).values()},
    }
