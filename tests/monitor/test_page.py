"""The page's values in words, its charts, and what makes a verdict unknown."""

from __future__ import annotations

import json
import re
import time

import pytest

from cln_backup.model.health import Finding, Level
from cln_backup.monitor.figures import Sample
from cln_backup.monitor.page import words
from cln_backup.monitor.page.charts import blocks, charts, ticks
from cln_backup.monitor.page.render import policy, render
from cln_backup.monitor.page.view import SPANS, NodeView, Verdict, verdict, worst_verdict
from tests.monitor.examples import NOW, good, new, samples, server, state, view


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (words.size(None), "\N{EN DASH}"),
        (words.size(0), "0 B"),
        (words.size(999), "999 B"),
        (words.size(332_561), "332.6 KB"),
        (words.size(999_960), "1.0 MB"),
        (words.size(10**16), "10000.0 TB"),
        (words.answer_time(25), "25 µs"),
        (words.answer_time(999.6), "1.0 ms"),
        (words.answer_time(85_000), "85.0 ms"),
        (words.answer_time(250_000), "250 ms"),
        (words.answer_time(1_250_000), "1.2 s"),
        (words.number(1_284_310), "1,284,310"),
        (words.short_number(24_000_000), "24.0 M"),
        (words.span(119), "119 s"),
        (words.span(120), "2 minutes"),
        (words.span(-5), "0 s"),
        (words.span(3 * 86_400), "3 days"),
        (words.ago(None, NOW), "never"),
        (words.ago(NOW + 50, NOW), "now"),
        (words.lag(0.2), "none"),
        (words.iso(0), "1970-01-01T00:00:00Z"),
        (words.iso(1e300), "1970-01-01T00:00:00Z"),
    ],
)
def test_words(said: str, text: str) -> None:
    assert said == text


def test_a_verdict_is_unknown_rather_than_safe() -> None:
    halted = Finding("halted", Level.BAD, "text")
    assert verdict(good(), NOW) is Verdict.GOOD
    assert verdict(good(), NOW + 27) is Verdict.GOOD
    assert verdict(good(), NOW + 29) is Verdict.UNKNOWN
    assert verdict(good(), NOW - 60) is Verdict.UNKNOWN
    assert verdict(good()._replace(findings=[halted]), NOW + 9999) is Verdict.BAD
    assert verdict(new(), NOW) is worst_verdict([]) is Verdict.UNKNOWN
    assert worst_verdict([Verdict.UNKNOWN, Verdict.WARNING, Verdict.GOOD]) is Verdict.UNKNOWN
    assert worst_verdict([verdict(each, NOW) for each in server()]) is Verdict.BAD


def _numbers(path: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?[0-9.]+", path.replace("h0", ""))]


@pytest.mark.parametrize("span", SPANS, ids=lambda span: span.name)
def test_charts_stay_in_their_frame(span: object) -> None:
    chosen = next(each for each in SPANS if each == span)
    drawn = charts(good(span=chosen), NOW)
    assert [chart.key for chart in drawn] == ["answers", "versions", "size", "lag"]
    for chart in drawn:
        for line in chart.lines:
            assert line.path.count("M") == 2  # the node was off once
            numbers = _numbers(line.path)
            assert all(0 <= x <= 1000 for x in numbers[::2])
            assert all(0 <= y <= 100 for y in numbers[1::2])
        assert 2 <= len(chart.rows) <= 6
        assert 1 <= len(chart.columns) <= 8
        places = [place for place, _ in json.loads(chart.points)]
        assert places == sorted(places)
    size = next(chart for chart in drawn if chart.key == "size")
    assert len(size.marks) == (0 if chosen is SPANS[0] else 1)


@pytest.mark.parametrize(
    "points",
    [
        [],
        [Sample(NOW)],
        [Sample(NOW - 60), Sample(NOW)],
        [Sample(NOW - 60, 0, 0, 0, 0, 0, 0, Level.GOOD), Sample(NOW, 0, 0, 0, 0, 0, 0, Level.BAD)],
        [Sample(NOW - 60, 5, 1, 1, 1, 1, 1e9), Sample(NOW, 5, 1, 2**60, 1e12, 1e12, 1e9)],
        [Sample(NOW - 120, 5), Sample(NOW - 60), Sample(NOW, 2**62)],
    ],
)
def test_charts_of_few_or_strange_figures(points: list[Sample]) -> None:
    html = render([view(state(), points=points)], NOW)
    assert "Your node is safe" in html
    for chart in charts(view(state(), points=points), NOW):
        for line in chart.lines:
            assert all(-0.1 <= number <= 1000.1 for number in _numbers(line.path))


def test_blocks_are_merged_and_have_gaps() -> None:
    drawn = blocks(good(), NOW)
    assert [block.level for block in drawn] == ["good", "warning", "good", "good"]
    gap = drawn[3].x - drawn[2].x - drawn[2].width
    assert 20 < gap < 60
    assert drawn[-1].x + drawn[-1].width <= 1000


def test_ticks_are_at_whole_hours_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        found = ticks(NOW - 86_400, NOW)
        assert [tick.text for tick in found] == ["00:00", "06:00", "12:00", "18:00"]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert [tick.text for tick in ticks(NOW - 7 * 86_400, NOW)]


def test_style_and_script_are_those_of_the_policy() -> None:
    import base64
    import hashlib

    html = render([good()], NOW, "title")
    for tag in ("style", "script"):
        [content] = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy()
    assert not re.search(r"<[^>]+ (?:style|on\w+)=", html)
    assert "http:" not in html.replace("http://www.w3.org/2000/svg", "")


def test_an_empty_history_says_so() -> None:
    html = render([NodeView("")], NOW)
    assert "There are no figures of this time yet" in html
    assert "Nothing has happened yet" in html
    assert samples(until=NOW - 2 * 86_400) == []
