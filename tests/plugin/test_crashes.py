"""A node that dies at every point of a transaction, and comes back."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests import captured
from tests.plugin.home import CAPTURES, KINDS, Home
from tests.soak import SOAK, kinds_of

_ROUTER = CAPTURES / "small" / "router"
_POINTS = (
    "before-hook@{}",
    "in-plugin@{}",
    "in-plugin@{}:bytes=40",
    "after-answer@{}",
    "in-commit@{}",
    "in-commit@{}:step=sync",
    "in-commit@{}:step=delete",
    "in-commit@{}:step=done",
)


def _crash(home: Home, *points: str, calls: int = 120, variant: bool = True) -> None:
    arguments = [word for point in points for word in ("--crash", point)]
    if variant:  # after a crash the node sends other statements, as real ones do
        arguments += ["--variant"]
    home.run(
        *("--capture", f"{_ROUTER}.jsonl.xz", "--calls", str(calls)), "--supervise", *arguments
    )


def _is_tried(kind: str, point: str, call: int) -> bool:
    """Whether to kill there: each kind of backup has each outcome, a file each point.

    The steps of a commit differ for the node's database and not for its backup or for the call,
    and encryption makes a difference where a record is cut and where one is dropped. `make soak`
    tries all.
    """
    if SOAK:
        return True
    if kind == "file":
        return call == 57 or ":step" not in point
    cuts_or_drops = point in {"in-plugin@{}:bytes=40", "after-answer@{}"}
    return cuts_or_drops or (kind == "dir" and call == 57 and ":step" not in point)


@pytest.mark.parametrize(
    ("kind", "point", "call"),
    [
        (kind, point, call)
        for kind in KINDS
        for point in _POINTS
        for call in (0, 2, 57)
        if _is_tried(kind, point, call)
    ],
)
def test_killed_once_at(home: Home, point: str, call: int) -> None:
    home.init()
    _crash(home, point.format(call))
    home.require_same(home.database)


def test_killed_again_at_the_first_call_of_each_new_process(home: Home) -> None:
    home.init()
    arguments = ("--capture", f"{_ROUTER}.jsonl.xz")
    home.run(*arguments, "--crash", "after-answer@60", code=None)
    for tag in ("a", "b", "c"):
        home.run(*arguments, "--variant", tag, "--crash", "after-answer@60", code=None)
    home.run(*arguments, "--variant", "d", "--calls", "40")
    home.require_same(home.database)
    assert home.dropped() == ["59", "59-2", "59-3", "59-4"]


@pytest.mark.parametrize("kind", kinds_of("file", "dir-encrypted"))
def test_five_kills_of_a_day_leave_the_recorded_database(home: Home, tmp_path: Path) -> None:
    home.init()
    points = ("after-answer@30", "in-commit@200", "in-plugin@333", "before-hook@500")
    _crash(home, *points, "after-answer@801", calls=10_000, variant=False)
    recorded = captured.unpacked(Path(f"{_ROUTER}.sqlite3.xz"), tmp_path / "recorded.sqlite3")
    home.require_same(home.database, recorded)


@pytest.mark.parametrize(
    ("kind", "point"),
    [
        (kind, point)
        for kind in KINDS
        for point in ("before-hook@1", "in-plugin@1", "after-answer@1")
        if SOAK or kind == "file" or point == "after-answer@1"
    ],
)
def test_killed_at_a_pragma_call(home: Home, point: str) -> None:
    home.init()
    _crash(home, point, calls=40)
    home.require_same(home.database)


@pytest.mark.parametrize(
    ("kind", "seed"),
    [(kind, seed) for kind in KINDS for seed in range(3) if SOAK or seed == KINDS.index(kind)],
)
def test_killed_anywhere_again_and_again(home: Home, seed: int) -> None:
    chance = random.Random(seed)
    home.init()
    calls = sorted(chance.sample([n for n in range(400) if n not in (1, 3)], 8))
    _crash(home, *(chance.choice(_POINTS).format(call) for call in calls), calls=420)
    home.require_same(home.database)


def test_killed_between_foreign_keys_off_and_on(home: Home) -> None:
    """The next process has them on silently, so the history says so."""
    home.init()
    home.run(
        *("--capture", f"{_ROUTER}.jsonl.xz", "--crash", "after-answer@2", "--riders", "none"),
        code=None,
    )
    home.run("--capture", f"{_ROUTER}.jsonl.xz", "--riders", "none", "--calls", "30")
    lines = home.cli("log", home.url).splitlines()
    kinds = [line.split()[:2] for line in lines[1:6]]
    assert kinds[:3] == [["1", "transaction"], ["1", "rider"], ["1", "rider"]]
    home.require_same(home.database)
