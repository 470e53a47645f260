"""Whether an answer has the shape that a document shows: the same, but for numbers and times."""

from __future__ import annotations

import json
import re
from typing import Any

_NOTE = "Note: "
_PLAIN = (
    (re.compile(r"/home/\w+"), "/home/NAME"),
    (re.compile(r"\b[0-9a-f]{16,}\b"), "HEX"),
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?Z?"), "TIME"),
    (re.compile(r"\d[\d,.]*(?<=\d)"), "0"),
    (re.compile(r"\b0 (?:bytes|B|KB|MB|GB)\b"), "0 BYTES"),
    (re.compile(r"\b0 (?:second|minute|hour|day)s? ago\b"), "AGO"),
    (re.compile(r"\b0 ([a-z]+?)s?\b"), r"0 \1"),
    (re.compile(r"[ \t]+"), " "),
)


def _plain(line: str) -> str:
    for found, instead in _PLAIN:
        line = found.sub(instead, line)
    return line.strip()


def _pattern(line: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, _plain(line).split("…"))))


def _keys(value: Any) -> Any:
    """A value of JSON without what differs from one answer to another."""
    if isinstance(value, dict):
        return {name: _keys(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_keys(value[0])] if value else []
    return None if value is None else type(value).__name__.replace("int", "float")


def unlike(shown: list[str], said: str) -> str:
    """Where an answer is not like the one that is shown; empty if nowhere.

    A line `…` stands for any lines. A note that is not shown may be there: some depend on the
    disk.
    """
    wanted = [line for line in shown if line.strip()]
    found = [line for line in said.splitlines() if line.strip()]
    if len(wanted) == 1 and wanted[0].startswith("{"):
        if _keys(json.loads(wanted[0])) == _keys(json.loads(found[0])):
            return ""
        return f"shown: {wanted[0]}\nsaid:  {found[0]}"
    place, skips = 0, False
    for line in wanted:
        if line.strip() == "…":
            skips = True
            continue
        pattern = _pattern(line)
        while place < len(found) and not pattern.fullmatch(_plain(found[place])):
            if not skips and not found[place].startswith(_NOTE):
                return f"shown: {line}\nsaid:  {found[place]}"
            place += 1
        if place == len(found):
            return f"shown, and not said: {line}"
        place, skips = place + 1, False
    more = [line for line in found[place:] if not line.startswith(_NOTE)]
    return "" if skips or not more else f"not shown: {more[0]}"
