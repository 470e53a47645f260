"""Chromium, driven through its own driver, for the tests and the pictures of the page."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
    "disable-background-networking", "disable-component-update", "disable-sync",
    "disable-dev-shm-usage", "hide-scrollbars",
)  # fmt: skip
_PATIENCE_S = 100
MISSING = "Chromium or its driver is not installed"

# The least ratio of each visible text's color to that of what is below it, with the text.
_CONTRAST = """
const parse = (text) => {
  const [r, g, b, a = 1] = text.match(/[0-9.]+/g).map(Number);
  return {r, g, b, a};
};
const light = ({r, g, b}) => [r, g, b].reduce((sum, part, which) => {
  part /= 255;
  part = part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  return sum + part * [0.2126, 0.7152, 0.0722][which];
}, 0);
const below = (element) => {
  for (; element; element = element.parentElement) {
    const color = parse(getComputedStyle(element).backgroundColor);
    if (color.a === 1) return color;
  }
  return {r: 255, g: 255, b: 255};
};
let worst = [99, "no text"];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
  const box = element.getBoundingClientRect();
  if (!text || !element.checkVisibility() || box.width <= 1) continue;
  const style = getComputedStyle(element);
  const color = element instanceof SVGElement ? style.fill : style.color;
  const [one, other] = [light(parse(color)), light(below(element))].sort((a, b) => b - a);
  const ratio = (one + 0.05) / (other + 0.05);
  if (ratio < worst[0]) worst = [ratio, text];
}
return worst;
"""


class Browser:
    """One window of a running Chromium."""

    def __init__(self) -> None:
        """Starts it; the test is skipped if there is none."""
        programs = shutil.which("chromium"), shutil.which("chromedriver")
        if None in programs:
            pytest.skip(MISSING)
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = programs[0] or ""
        for flag in _FLAGS:
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(programs[1])
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.set_page_load_timeout(_PATIENCE_S)
        self.driver.set_script_timeout(_PATIENCE_S)

    def order(self, command: str, **values: Any) -> Any:
        """A command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, values)

    def look(self, url: str, *, width: int = 1400, scheme: str = "light") -> None:
        """Opens a page at a width in CSS pixels, in a light or dark color scheme."""
        self.order(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.order("Emulation.setEmulatedMedia", features=[feature])
        self.driver.get(url)

    def run(self, script: str) -> Any:
        """The result of a script."""
        return self.driver.execute_script(script)

    def text(self, selector: str) -> str:
        """The text of the first such element as one sees it; empty if it is hidden."""
        found = f"document.querySelector({selector!r})"
        return str(self.run(f"return {found}?.checkVisibility() ? {found}.innerText : ''"))

    def least_contrast(self) -> tuple[float, str]:
        """The least contrast of a text to what is below it, and that text."""
        ratio, text = self.run(_CONTRAST)
        return float(ratio), str(text)

    def said(self) -> list[str]:
        """What the console has said since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def requests(self) -> list[str]:
        """The URLs that were asked for since the last call."""
        entries = self.driver.get_log("performance")  # type: ignore[no-untyped-call]
        told = [json.loads(entry["message"])["message"] for entry in entries]
        return [
            each["params"]["request"]["url"]
            for each in told
            if each["method"] == "Network.requestWillBeSent"
        ]

    def picture(self, width: int, height: int | None = None) -> bytes:
        """The page as a PNG file, down to its end or to a height."""
        whole = self.run("return document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": height or whole, "scale": 1}
        shot = self.order("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser, which is ended at the end."""
    opened = Browser()
    try:
        yield opened
    finally:
        opened.driver.quit()
