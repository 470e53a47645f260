"""Nodes as the page may find them: for the tests, and for the pictures in the documents."""

from __future__ import annotations

import math
import random
from typing import Any

from cln_backup.model.health import Finding, Level
from cln_backup.monitor.figures import Event, Sample
from cln_backup.monitor.page.view import SPANS, NodeView, Span
from cln_backup.monitor.state import Fault, NodeState, findings

NOW = 1_795_446_300.0
HOSTILE = "<script>document.title='pwned'</script>\"'&amp;{{ 7*7 }}"
NAMES = (
    "alice", "bob", "carol", "dave", "erin", "frank",
    "grace", "heidi", "ivan", "judy", "mallory", "niaj",
)  # fmt: skip
_MIB = 1 << 20


def state(now: float = NOW, **changes: Any) -> NodeState:
    """A node that is well, but for these changes."""
    fields: dict[str, Any] = {
        "at": now - 2,
        "protected": True,
        "important": True,
        "backend_url": "dir:///mnt/backup/node?keep=2",
        "version": 1_284_310,
        "backupsize": 212 * _MIB,
        "version_count": 48_211,
        "last_change_age_s": 3.4,
        "last_compaction_at": now - 2.2 * 86_400,
        "space_bound_bytes": 690 * _MIB,
        "free_bytes": 412_000 * _MIB,
        "follower": "following",
        "proven_version": 1_284_310,
        "proven_at": now - 3,
        "proof_lag_s": 0.0,
        "replica_checked_at": now - 2400,
        "foreign_key_faults": 0,
        "database_compared_at": now - 9 * 86_400,
        "drilled_at": now - 12 * 86_400,
        "drill_passed": True,
        "answer_p50_us": 480,
        "answer_p99_us": 2900,
        "release": "0.3.0",
    }
    return NodeState(**(fields | changes))


def samples(
    now: float = NOW, span: Span = SPANS[0], *, seed: int = 1, until: float | None = None
) -> list[Sample]:
    """Figures of a busy node; of a quarter with two compactions, and an hour without the node."""
    chance = random.Random(seed)
    step_s = {86_400.0: 360, 7 * 86_400.0: 2700}.get(span.seconds, 32_400)
    start = (now - span.seconds) // step_s * step_s + step_s
    found: list[Sample] = []
    at = start
    while at <= (until or now):
        part = (at - start) / span.seconds
        load = 1 + 0.5 * math.sin(at / 13_750) + chance.random() * 0.25
        level = Level.WARNING if 0.42 < part < 0.47 else Level.GOOD
        version = 1_284_310 - int((now - at) * 0.1)
        size = int((120 + 180 * ((part * 2.7 + 0.4) % 1)) * _MIB)
        lag = chance.choice((0, 0, 0, 1, 2)) + (45 if level is Level.WARNING else 0)
        slow = 900 * chance.random() ** 6 * 40
        if not 0.62 < part < 0.66:
            found.append(
                Sample(at, version, 48_211, size, 310 * load, 1900 * load + slow, lag, level)
            )
        at += step_s
    return found


def events(now: float = NOW) -> list[Event]:
    """What happened to such a node."""
    told = (
        (2.2, "compaction", Level.GOOD, "A compaction ended."),
        (3.1, "over", Level.GOOD, "Over: The follower is 16 minutes later than the backup."),
        (3.2, "finding", Level.WARNING, "The follower is 16 minutes later than the backup."),
        (
            9,
            "proof",
            Level.GOOD,
            "All tables of the node's database were compared with the backup.",
        ),
        (9, "release", Level.GOOD, "Release 0.3.0 is running."),
        (12, "drill", Level.GOOD, "A rehearsal of a restore passed."),
        (31, "notice", Level.GOOD, "The torn end of the backup, 412 bytes, was cut off and kept."),
        (31.01, "finding", Level.BAD, "The node has ended without having been stopped."),
    )
    return [Event(now - days * 86_400, kind, level, text) for days, kind, level, text in told]


def view(of: NodeState, now: float = NOW, name: str = "", **changes: Any) -> NodeView:
    """A node with a history."""
    given: dict[str, Any] = {
        "since": now - 3.1 * 86_400,
        "points": samples(now, changes.get("span", SPANS[0])),
        "events": events(now),
    }
    return NodeView(name, of, findings(of, now), **(given | changes))


def good(now: float = NOW, **changes: Any) -> NodeView:
    """A node that is safe."""
    return view(state(now), now, **changes)


def warning(now: float = NOW, **changes: Any) -> NodeView:
    """One with findings that can wait."""
    of = state(now, important=False, drilled_at=now - 140 * 86_400, free_bytes=90 * _MIB)
    return view(of, now, since=now - 5 * 3600, **changes)


def bad(now: float = NOW, **changes: Any) -> NodeView:
    """One that is not safe."""
    fault = Fault("replay", "the statement of data version 1284290 does not replay", now - 900)
    of = state(now, alarm=fault, proven_version=1_284_289, proof_lag_s=907.0, important=False)
    return view(of, now, since=now - 900, **changes)


def unknown(now: float = NOW, **changes: Any) -> NodeView:
    """One that has been silent for some time."""
    return view(state(now - 50), now, points=samples(now, until=now - 1200), **changes)


def new(_now: float = NOW) -> NodeView:
    """One that has told nothing yet."""
    return NodeView("")


def hostile(now: float = NOW) -> NodeView:
    """One whose texts are those of an attacker, with a secret in its URL."""
    of = state(
        now,
        backend_url=f"postgresql://ln:hunter2@db.example/{HOSTILE}?node=a&password=hunter2",
        release=HOSTILE,
        follower=f"waiting: {HOSTILE}",
        next_compaction=HOSTILE,
    )
    told = [Finding(HOSTILE, Level.BAD, HOSTILE, HOSTILE)]
    happened = [Event(now, HOSTILE, Level.BAD, HOSTILE)]
    return view(of, now, HOSTILE)._replace(findings=told, events=happened)


def server(now: float = NOW) -> list[NodeView]:
    """Twelve nodes of a server, three of them not well."""
    return [_served(name, number, now) for number, name in enumerate(NAMES)]


def _served(name: str, number: int, now: float) -> NodeView:
    chance = random.Random(number)
    changes: dict[str, Any] = {
        "protected": None,
        "important": None,
        "connected": True,
        "version": chance.randrange(10_000, 2_000_000),
        "backupsize": chance.randrange(2, 900) * _MIB,
        "backend_url": f"dir:///srv/backups/{name}",
        "database_compared_at": None,
        "drilled_at": None,
        "answer_p50_us": None,
        "answer_p99_us": None,
    }
    if name == "carol":
        changes |= {"alarm": Fault("damaged", "log-3 is damaged at byte 150242", now - 400)}
    if name == "heidi":
        changes |= {"connected": False, "away_s": 5400.0}
    told_at = now - 900 if name == "niaj" else now
    days = chance.random() * 60
    points = samples(now, seed=number)
    return view(state(told_at, **changes), now, name, since=now - days * 86_400, points=points)
