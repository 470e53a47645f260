"""The calls of the `db_write` hook: read from a recording, written as lightningd writes them."""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass, replace
from json.encoder import encode_basestring
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the hook.

    Attributes:
        index: its place in the recording or in the generated load; the first is 0. Events are not
            counted.
        data_version: what the hook is told.
        writes: the statements. Bytes that are not valid UTF-8 are lone surrogates (PEP 383).
    """

    index: int
    data_version: int
    writes: Sequence[str]

    @property
    def rider(self) -> bool:
        """Whether this is not a transaction: `PRAGMA` statements only, run at once."""
        return all(write.lstrip()[:6].upper() == "PRAGMA" for write in self.writes)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the recorded node between two calls."""

    name: str

    @property
    def kills(self) -> bool:
        """Whether the node was killed here, so that the call before was not committed."""
        return self.name.startswith("kill9")

    @property
    def crash_point(self) -> str:
        """The crash point that does to the call before what was done to the recorded node.

        Raises:
            ValueError: the event does not say whether the hook had been answered.
        """
        if self.name.endswith("before-reply"):
            return "in-plugin"
        if self.name.endswith("after-reply"):
            return "after-answer"
        raise ValueError(f"unknown event in the recording: {self.name}")


@dataclass(frozen=True, slots=True)
class Run:
    """One process of a recorded node: `count` calls from index `first`, and its end."""

    first: int
    count: int
    crash_point: str | None


def read_recording(path: str | Path) -> Iterator[Call | Event]:
    """Yield the lines of a recording in order; memory holds one at a time.

    Args:
        path: a `.jsonl` file, or one compressed as `.jsonl.xz`.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is neither a call nor an event.
    """
    with _open(path) as lines:
        index = 0
        for line in lines:
            entry = json.loads(line.decode("utf-8", "surrogateescape"))
            if "event" in entry:
                yield Event(str(entry["event"]))
                continue
            try:
                yield Call(index, entry["data_version"], entry["writes"])
            except KeyError as missing:
                raise ValueError(f"{path}: call {index} has no {missing}") from None
            index += 1


def _open(path: str | Path) -> IO[bytes]:
    file = Path(path)
    return lzma.open(file) if file.suffix == ".xz" else file.open("rb")


def all_calls(items: Iterable[Call | Event]) -> Iterator[Call]:
    """Yield every call, also those that were never committed."""
    return (item for item in items if isinstance(item, Call))


def committed_calls(items: Iterable[Call | Event]) -> Iterator[Call]:
    """Yield the calls that became part of the recorded node's database.

    A call that a kill followed was rolled back when the next process opened the database.
    """
    held: Call | None = None
    for item in items:
        if isinstance(item, Call):
            if held is not None:
                yield held
            held = item
        elif item.kills:
            held = None
    if held is not None:
        yield held


def runs(items: Iterable[Call | Event]) -> list[Run]:
    """Say what each process of the recorded node did.

    Raises:
        ValueError: the recording holds an event that is not understood.
    """
    found: list[Run] = []
    first = count = 0
    for item in items:
        if isinstance(item, Call):
            count += 1
        elif item.kills or (item.name == "start" and count):
            found.append(Run(first, count, item.crash_point if item.kills else None))
            first, count = first + count, 0
        elif item.name != "start":
            raise ValueError(f"unknown event in the recording: {item.name}")
    if count:
        found.append(Run(first, count, None))
    return found


def has_events(path: str | Path) -> bool:
    """Whether a recording says where processes begin or end."""
    with _open(path) as lines:
        return any(line.startswith(b'{"event"') for line in lines)


def json_text(text: str) -> bytes:
    r"""Encode a string as lightningd does: only `"`, `\` and control characters are escaped.

    Whatever else is in it passes as the bytes it is made of, UTF-8 or not
    (`ccan/json_escape`, `json_escape_needed`).
    """
    return encode_basestring(text).replace("\x7f", "\\u007F").encode("utf-8", "surrogateescape")


def hook_params(call: Call) -> bytes:
    """Encode the parameters of the hook, without spaces, as `plugin_hook_db_sync` does."""
    writes = b",".join(map(json_text, call.writes))
    return b'{"data_version":%d,"writes":[%b]}' % (call.data_version, writes)


def variant(call: Call, tag: str) -> Call:
    """Return a call with the same version and other statements, as a node sends after a crash.

    The row that is added says at which version it was written. A backup that replays both the
    call that was never committed and this one gets another number there, or an error.

    Args:
        call: a transaction of a database with the table `vars`.
        tag: told apart from other variants of the same call.
    """
    quoted = f"simulator_{tag}_{call.data_version}".replace("'", "''")
    added = (
        f"INSERT INTO vars (name, intval) SELECT '{quoted}', intval FROM vars"
        " WHERE name = 'data_version'"
    )
    return replace(call, writes=[*call.writes[:-1], added, call.writes[-1]])
