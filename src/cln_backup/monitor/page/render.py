"""The page as HTML, from values. Needs the extra `page`."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

from cln_backup import __version__
from cln_backup.backends import redacted
from cln_backup.model.errors import BadSettings
from cln_backup.model.health import Level
from cln_backup.monitor.page import words
from cln_backup.monitor.page.charts import blocks, charts
from cln_backup.monitor.page.view import ORDER, SPANS, Verdict, is_stale, verdict, worst_verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    import jinja2

    from cln_backup.model.health import Finding
    from cln_backup.monitor.figures import Event
    from cln_backup.monitor.page.view import NodeView

SHORT: Final = {
    Verdict.GOOD: "Safe",
    Verdict.WARNING: "Needs attention",
    Verdict.BAD: "Not safe",
    Verdict.UNKNOWN: "Unknown",
}
_SYMBOLS: Final = {
    Verdict.GOOD: "✓",
    Verdict.WARNING: "!",
    Verdict.BAD: "✕",
    Verdict.UNKNOWN: "?",
}
_SHOWN_EVENTS: Final = 30
_ORDER: Final = (Level.BAD, Level.WARNING, Level.GOOD)


class Fact(NamedTuple):
    """A labelled value; `key` is its name for the script."""

    key: str
    label: str
    text: str


class _Shown(NamedTuple):
    """A node in the words of the page."""

    name: str
    title: str
    verdict: Verdict
    short: str
    symbol: str
    heading: str
    since: str
    lasts: str
    since_iso: str
    told: str
    findings: list[Finding]
    facts: dict[str, Fact]
    view: NodeView


@functools.cache
def _text(name: str) -> str:
    file = importlib.resources.files("cln_backup.monitor.page") / "files" / name
    return file.read_text(encoding="utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    try:
        import jinja2
    except ImportError:
        raise BadSettings(
            "The Python package Jinja2 is not installed; the page needs it. Install it where "
            "cln-backup is installed: pip install jinja2 in its virtual environment, or "
            "pipx inject cln-backup jinja2."
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "words": words,
        "symbols": {kind.value: symbol for kind, symbol in _SYMBOLS.items()},
        "short": {kind.value: text for kind, text in SHORT.items()},
        "spans": SPANS,
        "release": __version__,
    }
    return environment


def check() -> None:
    """Raises `BadSettings` if a package is missing that the page needs."""
    _environment()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@functools.cache
def policy() -> str:
    """The page's Content-Security-Policy: nothing but its own style and script."""
    return (
        f"default-src 'none'; style-src '{_hash(_text('page.css'))}'; "
        f"script-src '{_hash(_text('page.js'))}'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def render(nodes: Sequence[NodeView], now: float, title: str = "", *, of_many: bool = False) -> str:
    """The page as HTML: one node in full, or an overview of several.

    Args:
        nodes: the one node, or all nodes of a server.
        now: seconds since 1970.
        title: the name of the machine or the node, at the top.
        of_many: whether the one node is a server's, which has an overview too.

    Raises:
        BadSettings: a package is missing.
    """
    environment = _environment()
    import markupsafe

    is_one = len(nodes) == 1 and (of_many or not nodes[0].name)

    shown = [_shown(node, now, title) for node in nodes]
    whole = worst_verdict([each.verdict for each in shown])
    values: dict[str, Any] = {
        "title": title,
        "now": now,
        "nodes": shown,
        "verdict": whole,
        "of_many": of_many,
        "revision": revision(nodes, now),
        "build": _hash(_text("page.css") + _text("page.js")),
        "css": markupsafe.Markup(_text("page.css")),  # noqa: S704 - a file of this package
        "js": markupsafe.Markup(_text("page.js")),  # noqa: S704 - a file of this package
        "json_at": "/state.json",
    }
    if is_one:
        node = shown[0]
        values |= {
            "node": node,
            "charts": charts(node.view, now),
            "blocks": blocks(node.view, now),
            "events": node.view.events[:_SHOWN_EVENTS],
            "event_level": _event_level,
            "json_at": "/state.json" + (f"?node={quote(node.name, safe='')}" if node.name else ""),
        }
    else:
        kinds = [each.verdict for each in shown]
        shown.sort(key=lambda each: (-ORDER.index(each.verdict), each.name))
        values |= {
            "heading": _heading_of_many(whole, len(shown)),
            "counts": [(kind.value, kinds.count(kind)) for kind in Verdict if kind in kinds],
            "strips": {each.name: blocks(each.view, now) for each in shown},
        }
    return environment.get_template("page.html").render(values)


def revision(nodes: Sequence[NodeView], now: float) -> str:
    """Changes when the page has more to show than new texts of its facts; also each minute."""
    parts = [
        (node.name, verdict(node, now).value, [*node.findings], [*node.events[:1]])
        for node in nodes
    ]
    return hashlib.sha256(f"{now // 60} {parts}".encode()).hexdigest()[:16]


def _event_level(event: Event) -> str:
    """The class of an event; one that only informs has no level."""
    return "plain" if event.level is Level.GOOD and event.kind != "over" else event.level.value


def _shown(view: NodeView, now: float, title: str) -> _Shown:
    found = verdict(view, now)
    findings = sorted(view.findings, key=lambda finding: _ORDER.index(finding.level))
    if found is Verdict.UNKNOWN:  # what was right at the last report says nothing about now
        findings = [finding for finding in findings if finding.level is not Level.GOOD]
    since = None if found is Verdict.UNKNOWN else view.since
    return _Shown(
        name=view.name,
        title=view.name or title or "this node",
        verdict=found,
        short=SHORT[found],
        symbol=_SYMBOLS[found],
        heading=_heading(view, found),
        since="" if since is None else words.moment(since),
        lasts="" if since is None else words.span(now - since),
        since_iso="" if since is None else words.iso(since),
        told=_told(view, now),
        findings=findings,
        facts=facts(view, now),
        view=view,
    )


def _heading(view: NodeView, found: Verdict) -> str:
    by_server = view.state is not None and view.state.protected is None
    whose = "the backup" if by_server else "your node"
    if view.name:
        whose = f"the backup of {view.name}"
    return _sentence(found, f"{whose} is")


def _heading_of_many(found: Verdict, count: int) -> str:
    if not count:
        return "No node has reported yet"
    if found is Verdict.BAD:
        return "Not all backups are safe"
    return _sentence(found, f"all {count} backups are" if count != 1 else "the backup is")


def _sentence(found: Verdict, subject: str) -> str:
    text = {
        Verdict.GOOD: f"{subject} safe",
        Verdict.WARNING: f"{subject} safe, but "
        + ("some need attention" if subject.endswith("are") else "needs attention"),
        Verdict.BAD: f"{subject} not safe",
        Verdict.UNKNOWN: f"it is unknown whether {subject} safe",
    }[found]
    return text[0].upper() + text[1:]


def _told(view: NodeView, now: float) -> str:
    if view.state is None:
        return "Nothing has been reported yet."
    if is_stale(view, now):
        at = view.state.at
        return f"The last report is from {words.moment(at)}, {words.ago(at, now)}."
    return f"Reported at {words.clock(view.state.at)}"


def facts(view: NodeView, now: float) -> dict[str, Fact]:
    """The figures of a node in words, by key; those it does not have are left out."""
    state = view.state
    if state is None:
        return {}
    age_s = state.last_change_age_s
    changed_at = None if age_s is None else state.at - age_s
    found = [
        Fact("version", "Data version", words.number(state.version)),
        Fact("changed", "Last change", words.ago(changed_at, now)),
        Fact("size", "Size", words.size(state.backupsize)),
        Fact("changes", "Changes", words.number(state.version_count)),
    ]
    if state.answer_p50_us is not None:
        found += [
            Fact("p50", "Answer time, median", words.answer_time(state.answer_p50_us)),
            Fact("p99", "99th percentile", words.answer_time(state.answer_p99_us)),
        ]
    if state.protected is not False and state.backend_url:
        found.append(Fact("url", "Destination", redacted(state.backend_url)))
    found += _of_room(view)
    found += _of_proofs(view, now)
    found.append(Fact("told", "Report", _told(view, now)))
    return {fact.key: fact for fact in found}


def _of_room(view: NodeView) -> list[Fact]:
    state = view.state
    assert state is not None
    found = []
    if state.space_bound_bytes is not None:
        found.append(Fact("bound", "At most", words.size(state.space_bound_bytes)))
    if state.free_bytes is not None:
        found.append(Fact("free", "Free on its disk", words.size(state.free_bytes)))
    if state.quota_bytes:
        found.append(Fact("quota", "Quota", words.size(state.quota_bytes)))
    if state.connected is not None:
        away = "" if state.away_s is None else f" for {words.span(state.away_s)}"
        found.append(
            Fact("connected", "Node", "connected" if state.connected else f"not connected{away}")
        )
    return found


def _of_proofs(view: NodeView, now: float) -> list[Fact]:
    state = view.state
    assert state is not None
    found = [
        Fact(
            "compaction",
            "Last compaction",
            "running now" if state.compacting else words.ago(state.last_compaction_at, now),
        )
    ]
    if state.protected is None and state.last_compaction_at is None:
        found.clear()  # a server does not remember those before its start
    if state.next_compaction:
        found.append(Fact("due", "Next compaction", f"due: {state.next_compaction}"))
    if state.follower is not None:
        found.append(Fact("follower", "Follower", state.follower))
    if state.proven_version is not None:
        found += [
            Fact("proven", "Replayed up to version", words.number(state.proven_version)),
            Fact("proven_at", "Newest proof", words.ago(state.proven_at, now)),
            Fact("lag", "Lag of the proof", words.lag(state.proof_lag_s)),
            Fact("checked", "Integrity check", words.ago(state.replica_checked_at, now)),
        ]
    if state.protected is not None:
        found.append(
            Fact(
                "compared",
                "Compared with the node's database",
                words.ago(state.database_compared_at, now),
            )
        )
        drill = words.ago(state.drilled_at, now)
        if state.drilled_at is not None:
            drill = f"{'failed' if state.drill_passed is False else 'passed'} {drill}"
        found.append(Fact("drill", "Rehearsal of a restore", drill))
    return found
