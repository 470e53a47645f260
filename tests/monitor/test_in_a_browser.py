"""The page in Chromium: how it looks, what it asks for, and that it never shows what is old."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import pytest

from tests.monitor import examples
from tests.monitor.browser import Browser, browser
from tests.monitor.serving import Values, page_of
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cln_backup.monitor.page.view import NodeView

_LOOKS = ((360, "light"), (360, "dark"), (1400, "dark"), (1400, "light"))


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


def _one(make: Callable[[float], NodeView]) -> Callable[[float], list[NodeView]]:
    return lambda now: [make(now)]


@contextlib.contextmanager
def _served(
    window: Browser, make: Callable[[float], Sequence[NodeView]]
) -> Iterator[tuple[Values, str]]:
    """Serves the page; gives its values and its URL. The window leaves it before it ends."""
    window.said()
    window.requests()
    with page_of(make) as (values, port):
        try:
            yield values, f"http://127.0.0.1:{port}/"
        finally:
            window.driver.get("about:blank")


def test_how_it_looks(window: Browser) -> None:
    """At a phone's width and a screen's, in both color schemes; no foreign request, no error."""
    shown = {
        "Your node is safe": _one(examples.good),
        "Your node is safe, but needs attention": _one(examples.warning),
        "Your node is not safe": _one(examples.bad),
        "It is unknown whether your node is safe": _one(examples.unknown),
        "Not all backups are safe": examples.server,
    }
    for number, (heading, make) in enumerate(shown.items()):
        with _served(window, make) as (_, url):
            for width, scheme in (_LOOKS[number % 2], _LOOKS[number % 2 + 2]):
                at = f"{heading}, {width}, {scheme}"
                window.look(url, width=width, scheme=scheme)
                assert window.text("#verdict h1") == heading, at
                assert not window.text("#lost"), at
                assert window.run("return document.documentElement.scrollWidth") <= width, at
                ratio, text = window.least_contrast()
                assert ratio >= 4.5, f"{at}: {text}"
            assert not window.said(), heading
            asked = [each for each in window.requests() if not each.startswith("data:")]
            assert asked, heading
            assert all(each.startswith(url) for each in asked), asked


def test_texts_of_an_attacker_stay_texts(window: Browser) -> None:
    with _served(window, _one(examples.hostile)) as (_, url):
        window.look(url, width=360)
        window.run("document.querySelector('#nodes a').click()")
        wait_until(lambda: window.text("#findings"), "The node's own page does not come.")
        assert "pwned" not in window.driver.title.partition("<")[0]
        assert examples.HOSTILE in window.text("#verdict h1")
        assert window.run("return document.documentElement.scrollWidth") <= 360
        assert not window.said()


def test_without_javascript(window: Browser) -> None:
    with _served(window, _one(examples.warning)) as (_, url):
        window.order("Emulation.setScriptExecutionDisabled", value=True)
        try:
            window.look(url, width=360)
            assert "needs attention" in window.text("#verdict h1")
            assert "loads itself again" in window.text("footer")
            heights = window.run(
                "return [...document.querySelectorAll('.axes path')].map("
                "path => path.getBoundingClientRect().height)"
            )
            assert len(heights) == 5
            assert all(height > 5 for height in heights)
        finally:
            window.order("Emulation.setScriptExecutionDisabled", value=False)


def _wake(window: Browser, *, later_s: int = 0) -> None:
    """Has the script ask now and not in five seconds, perhaps with a clock that went on."""
    window.run(
        f"const now = Date.now.bind(Date); Date.now = () => now() + {later_s} * 1000;"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )


def test_it_lives_without_a_reload(window: Browser) -> None:
    with _served(window, _one(examples.good)) as (values, url):
        window.look(url)
        window.run("window.isTheSame = true")

        state = examples.state
        values.make = lambda now: [examples.view(state(now, version=1_284_399), now)]
        _wake(window)
        wait_until(lambda: window.text("[data-fact=version]") == "1,284,399", "The version stays.")
        values.make = _one(examples.bad)
        _wake(window)
        wait_until(lambda: window.text("#verdict h1") == "Your node is not safe", "It stays safe.")
        assert window.driver.title.startswith("✕ Not safe")
        assert "does not replay" in window.text("#findings")

        read = window.run(
            "const chart = document.querySelector('#chart-answers');"
            "const axes = chart.querySelector('.axes'), box = axes.getBoundingClientRect();"
            "const said = () => chart.querySelector('.reading').innerText, before = said();"
            "axes.dispatchEvent(new PointerEvent('pointermove', {bubbles: true,"
            " clientX: box.left + box.width / 2, clientY: box.top + 50}));"
            "return [before, said(), chart.querySelector('.cursor').getAttribute('visibility')]"
        )
        assert re.fullmatch(r"\d\d:\d\d: median [^,]+, 99th percentile .*", read[1]), read
        assert read[2] == "visible"
        assert window.run("return window.isTheSame") is True
        assert not window.said()


def test_it_says_unknown_when_it_reaches_nothing(window: Browser) -> None:
    with _served(window, _one(examples.good)) as (_, url):
        window.look(url)
        _set_offline(window, offline=True)
        try:
            _wake(window, later_s=40)
            wait_until(lambda: "It is unknown" in window.text("#lost h1"), "It seems safe.")
            assert not window.text("#verdict")
            assert window.driver.title.startswith("? Unknown")
        finally:
            _set_offline(window, offline=False)
        _wake(window)
        wait_until(lambda: window.text("#verdict h1") == "Your node is safe", "It stays unknown.")
        assert not window.text("#lost")
        assert window.driver.title.startswith("✓ Safe")


def _set_offline(window: Browser, *, offline: bool) -> None:
    window.order("Network.enable")
    window.order(
        "Network.emulateNetworkConditions",
        offline=offline,
        latency=0,
        downloadThroughput=-1,
        uploadThroughput=-1,
    )
