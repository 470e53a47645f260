"""The calls one process of the node has before it."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from simulator.calls import Call

RIDERS = ("needed", "all", "none")


class SourceError(Exception):
    """The calls do not continue from the database's version."""


class CallQueue:
    """Hands out calls in order; memory holds only those that are looked ahead at."""

    def __init__(self, calls: Iterable[Call]) -> None:
        self._calls = iter(calls)
        self._ahead: deque[Call] = deque()

    def take(self, *, keep: int = 0) -> Call | None:
        """Take the next call, or `None` if no more than `keep` are left."""
        missing = keep + 1 - len(self._ahead)
        if missing > 0:
            self._ahead.extend(islice(self._calls, missing))
        return self._ahead.popleft() if len(self._ahead) > keep else None

    def give_back(self, call: Call) -> None:
        """Put back a call that was taken and not made."""
        self._ahead.appendleft(call)


def after_version(calls: Iterable[Call], data_version: int, riders: str) -> Iterator[Call]:
    """Yield the calls that follow on a database, beginning with those a new process makes.

    The first transaction is the one with the next version. Riders before it were
    perhaps made already, but a new process has the pragmas it begins with.

    Args:
        calls: all of them, from the beginning.
        data_version: the database's version.
        riders: `needed` leaves out those that only say what a new process begins with anyway
            (`foreign_keys = ON`), as a real node does, which does not repeat them; `all` and
            `none` are what they say.

    Raises:
        SourceError: the database is ahead of the calls, or no call follows on it.
    """
    rest = iter(calls)
    between: list[Call] = []
    version = 0
    for call in rest:
        if call.rider:
            between.append(call)
            continue
        version = call.data_version
        if version <= data_version:
            between.clear()
            continue
        if version != data_version + 1:
            raise SourceError(
                f"no call leads from data_version {data_version} to {data_version + 1}"
            )
        yield from _selected(between, riders)
        yield call
        yield from rest
        return
    if version < data_version:
        raise SourceError(f"the calls end at {version}, the database is at {data_version}")
    yield from _selected(between, riders)


def _selected(between: list[Call], riders: str) -> Iterator[Call]:
    if riders == "none":
        return
    foreign_keys = True
    for call in between:
        wanted = _foreign_keys(call)
        if riders == "needed" and wanted is not None and wanted == foreign_keys:
            continue
        foreign_keys = foreign_keys if wanted is None else wanted
        yield call


def _foreign_keys(rider: Call) -> bool | None:
    """Say what a rider sets `foreign_keys` to; `None` if it is about something else."""
    text = "".join(rider.writes[-1].lower().split()).rstrip(";")
    return {"pragmaforeign_keys=on": True, "pragmaforeign_keys=off": False}.get(text)


def until_version(calls: Iterable[Call], last: int) -> Iterator[Call]:
    """Yield calls up to a version; the riders on it are among them."""
    for call in calls:
        if call.data_version > last:
            return
        yield call


def from_index(calls: Iterable[Call], first: int) -> Iterator[Call]:
    """Yield calls from an index on."""
    return (call for call in calls if call.index >= first)
