"""The pictures in docs/images: `python -m tests.monitor.pictures` makes them again."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tests.monitor import examples
from tests.monitor.browser import browser
from tests.monitor.serving import page_of

_IMAGES = Path(__file__).parents[2] / "docs" / "images"
_PICTURES = (
    ("page-good", lambda now: [examples.good(now)], 1100, 1000, "light"),
    ("page-bad", lambda now: [examples.bad(now)], 1100, 600, "dark"),
    ("page-server", examples.server, 1100, 860, "light"),
    ("page-phone", lambda now: [examples.warning(now)], 380, 760, "dark"),
)


def main() -> None:
    """Makes the pictures, and says how large they are."""
    os.environ["TZ"] = "UTC"
    time.tzset()
    with browser() as window:
        for name, make, width, height, scheme in _PICTURES:
            with page_of(make) as (_, port):
                window.look(f"http://127.0.0.1:{port}/", width=width, scheme=scheme)
                path = _IMAGES / f"{name}.png"
                path.write_bytes(window.picture(width, height))
                window.driver.get("about:blank")
            sys.stdout.write(f"{path.name} {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
