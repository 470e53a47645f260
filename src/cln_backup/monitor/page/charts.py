"""Charts as lines of SVG: pure, from samples to coordinates and labels."""

from __future__ import annotations

import itertools
import json
import math
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.monitor.page import words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cln_backup.monitor.figures import Sample
    from cln_backup.monitor.page.view import NodeView

_WIDTH: Final = 1000
_HEIGHT: Final = 100
_GAP: Final = 2.5
"""Samples that are further apart than so many of their spans are not joined."""


class Line(NamedTuple):
    """One line of a chart: its name, and the SVG path."""

    name: str
    path: str


class Tick(NamedTuple):
    """A label at a place of an axis, in percent from the left or the top."""

    percent: float
    text: str


class Chart(NamedTuple):
    """A chart, as the template draws it.

    Attributes:
        key: its name in the page.
        title: its heading.
        summary: the latest values and the extremes, in words.
        lines: in a field of 1000 by 100.
        rows: the labels at the left.
        columns: the labels below.
        marks: places of vertical lines, in percent from the left.
        points: JSON for the script: for each sample its place, from 0 to 1000, and its text.
    """

    key: str
    title: str
    summary: str
    lines: tuple[Line, ...]
    rows: tuple[Tick, ...]
    columns: tuple[Tick, ...]
    marks: tuple[float, ...]
    points: str


class Block(NamedTuple):
    """A stretch of time at one level, from 0 to 1000."""

    x: float
    width: float
    level: str


class _Series(NamedTuple):
    name: str
    of: Callable[[Sample], float | None]


_Scale = tuple[float, float, "tuple[float, ...]"]
"""The lowest value, the highest, and those with a label."""


def charts(view: NodeView, now: float) -> tuple[Chart, ...]:
    """The charts of a node, of those figures that it has."""
    compactions = [event.at for event in view.events if event.kind == "compaction"]
    found = (
        _chart(
            view,
            now,
            ("answers", "Answer times"),
            (_Series("median", lambda s: s.p50_us), _Series("99th percentile", lambda s: s.p99_us)),
            words.answer_time,
            _decades,
        ),
        _chart(
            view,
            now,
            ("versions", "Data version"),
            (_Series("version", lambda s: s.version),),
            words.number,
            _linear,
        ),
        _chart(
            view,
            now,
            ("size", "Size of the backup"),
            (_Series("size", lambda s: s.size_bytes),),
            words.size,
            _from_zero,
            compactions,
        ),
        _chart(
            view,
            now,
            ("lag", "Lag of the proof"),
            (_Series("lag", lambda s: s.lag_s),),
            words.lag,
            _seconds,
        ),
    )
    return tuple(chart for chart in found if chart is not None)


def _chart(
    view: NodeView,
    now: float,
    called: tuple[str, str],
    series: tuple[_Series, ...],
    say: Callable[[float | None], str],
    scale: Callable[[float, float], _Scale],
    marks: Sequence[float] = (),
) -> Chart | None:
    values = [value for one in series for s in view.points if (value := one.of(s)) is not None]
    if len(view.points) < 2 or not values:
        return None
    low, high, labels = scale(min(values), max(values))
    is_log = scale is _decades
    start = now - view.span.seconds

    def x_of(at: float) -> float:
        return round((at - start) / view.span.seconds * _WIDTH, 1)

    def y_of(value: float) -> float:
        if is_log:
            part = math.log(max(value, low) / low) / math.log(high / low)
        else:
            part = (value - low) / (high - low)
        return round((1 - part) * _HEIGHT, 1)

    texts = [
        [
            x_of(s.at),
            f"{_label(s.at, view.span.seconds)}: "
            + ", ".join(f"{one.name} {say(one.of(s))}" for one in series),
        ]
        for s in view.points
    ]
    last = ", ".join(f"{one.name} {say(_last(view.points, one))}" for one in series)
    return Chart(
        *called,
        f"{last}; from {say(min(values))} to {say(max(values))}",
        tuple(Line(one.name, _path(view.points, one, x_of, y_of)) for one in series),
        tuple(Tick(y_of(value), _short(say, value)) for value in labels),
        ticks(start, now),
        tuple(x_of(at) / 10 for at in marks if start <= at <= now),
        json.dumps(texts, ensure_ascii=False, separators=(",", ":")),
    )


def _short(say: Callable[[float | None], str], value: float) -> str:
    text = words.short_number(value) if say is words.number else say(value)
    return text.replace(".0 ", " ")


def _last(points: Sequence[Sample], series: _Series) -> float | None:
    return next((value for s in reversed(points) if (value := series.of(s)) is not None), None)


def _step(points: Sequence[Sample]) -> float:
    """The usual distance of two samples, in seconds."""
    steps = sorted(later.at - earlier.at for earlier, later in itertools.pairwise(points))
    return steps[len(steps) // 2] if steps else 60.0


def _path(
    points: Sequence[Sample],
    series: _Series,
    x_of: Callable[[float], float],
    y_of: Callable[[float], float],
) -> str:
    parts: list[str] = []
    gap_s, before = _GAP * _step(points), -math.inf
    for sample in points:
        value = series.of(sample)
        if value is None:
            continue
        joins = sample.at - before <= gap_s
        # A sample that is alone is a dot: a line of no length with round ends.
        parts.append(f"{'L' if joins else 'M'}{x_of(sample.at)} {y_of(value)}")
        if not joins:
            parts.append("h0")
        before = sample.at
    return "".join(parts)


def _decades(low: float, high: float) -> _Scale:
    first = math.floor(math.log10(max(low, 1.0)))
    last = max(math.ceil(math.log10(max(high, 1.0))), first + 1)
    every = max(1, (last - first) // 3)
    return 10.0**first, 10.0**last, tuple(10.0**n for n in range(first, last + 1, every))


def _nice(rough: float, steps: Sequence[float] = (1, 2, 5, 10)) -> float:
    magnitude = 10.0 ** math.floor(math.log10(rough))
    return next(step * magnitude for step in steps if step * magnitude >= rough * 0.999)


def _linear(low: float, high: float) -> _Scale:
    step = _nice(max(high - low, 2.0) / 2)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    return first * step, last * step, tuple(n * step for n in range(first, last + 1))


def _from_zero(_low: float, high: float) -> _Scale:
    step = _nice(max(high, 1.0) / 2)
    last = max(1, math.ceil(high / step))
    return 0.0, last * step, tuple(n * step for n in range(last + 1))


def _seconds(_low: float, high: float) -> _Scale:
    steps = (5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21_600.0, 86_400.0)
    step = next((step for step in steps if 2 * step >= high), math.ceil(high / 2))
    return 0.0, 2 * step, (0.0, step, 2 * step)


def _label(at: float, span_s: float) -> str:
    return words.moment(at)[-5:] if span_s <= 86_400 else words.moment(at)


def ticks(start: float, until: float) -> tuple[Tick, ...]:
    """Labels of a time axis, at whole hours, days or half months of this machine's time zone."""
    span_s = until - start
    found = []
    there = time.localtime(start)
    at = start + 3600 - 60 * there.tm_min - there.tm_sec
    while at < until:
        there = time.localtime(at)
        text = _tick(there, span_s)
        percent = (at - start) / span_s * 100
        if text and 3 <= percent <= 97:
            found.append(Tick(round(percent, 2), text))
        at += 3600
    return tuple(found)


def _tick(at: time.struct_time, span_s: float) -> str:
    if span_s <= 86_400:
        return time.strftime("%H:%M", at) if at.tm_hour % 6 == 0 else ""
    if at.tm_hour:
        return ""
    if span_s <= 7 * 86_400:
        return time.strftime("%a", at)
    return f"{at.tm_mday} {time.strftime('%b', at)}" if at.tm_mday in (1, 15) else ""


def blocks(view: NodeView, now: float) -> tuple[Block, ...]:
    """The levels over time; a gap between them is unknown."""
    found: list[Block] = []
    start, width_s = now - view.span.seconds, _step(view.points)
    for sample in view.points:
        if sample.level is None:
            continue
        x = max(0.0, (sample.at - start) / view.span.seconds * _WIDTH)
        end = min(_WIDTH, (sample.at + width_s - start) / view.span.seconds * _WIDTH)
        before = found[-1] if found else None
        if before and before.level == sample.level.value and x - before.x - before.width < 0.5:
            found[-1] = before._replace(width=round(end - before.x, 1))
        elif end > x:
            found.append(Block(round(x, 1), round(end - x, 1), sample.level.value))
    return tuple(found)
