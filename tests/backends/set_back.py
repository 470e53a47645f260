"""A machine that is set back to a checkpoint, memory and all: `python -m tests.backends.set_back`.

A fork is the state at the checkpoint: its child has the writer as it was then, with its place in
the backup, its open files and its locks. The parent continues as the machine did; then the child
does what the machine does when it continues from the checkpoint. Prints, for each case, what became
of it as a line of JSON.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.look import PAUSE_S
from cln_backup.model.change import Change
from cln_backup.model.errors import BackupError
from tests.backends.conformance import PLACES
from tests.histories import (
    append,
    image,
    long_text,
    payment,
    payments,
    prepared,
    started_node,
    take_over,
    told,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.backends.contract import Writer

_BLOCK_BYTES = 4096
_SEGMENT_BYTES = 1 << 18


def go_on(backend: Writer) -> None:
    """One more change."""
    backend.add_change(payment(backend.version + 1, "the newest one"))


def _go_on_for_long(backend: Writer) -> None:
    for change in payments(backend.version + 1, backend.version + 41):
        backend.add_change(change)


def _go_on_past_a_segment(backend: Writer) -> None:
    text = os.urandom(_SEGMENT_BYTES // 2).hex()
    for _ in range(3):
        backend.add_change(payment(backend.version + 1, text))


def _drop_and_go_on(backend: Writer) -> None:
    backend.rewind()
    go_on(backend)


def compact(backend: Writer) -> None:
    """Folds all before the head into a snapshot."""
    with open_reader(backend.place.url) as reader:
        base = Change(reader.standing.prev_version, image("all that came before"), None)
        staged = prepared(reader, base, foreign_keys=True)
    take_over(backend, staged)


def _compact_and_go_on(backend: Writer) -> None:
    compact(backend)
    go_on(backend)


def _snapshot(backend: Writer) -> None:
    backend.add_change(Change(backend.version, image("of an old state"), None))


SINCE: dict[str, Callable[[Writer], None]] = {
    "one change": go_on,
    "many changes": _go_on_for_long,
    "a segment": _go_on_past_a_segment,
    "a drop": _drop_and_go_on,
    "a compaction": _compact_and_go_on,
}
"""The steps of the machine after the checkpoint."""

THEN: dict[str, Callable[[Writer], None]] = {
    "go on": go_on,
    "drop": lambda backend: backend.rewind(),
    "snapshot": _snapshot,
    "compact": compact,
    "begin a segment": _go_on_past_a_segment,
}
"""The steps of the machine after it was set back."""

CASES = [
    *((since, "go on", "anywhere") for since in SINCE),
    ("one change", "go on", "a border"),
    ("one change", "go on", "the start"),
    *(("one change", then, "anywhere") for then in THEN if then != "go on"),
]


def fill_to_a_border(backend: Writer, directory: Path) -> None:
    """Appends until the last change ends where a block does."""
    a_letter_bytes = 1.0 if newest_file(directory).suffix == ".bkp" else 0.51
    besides_bytes = 200.0
    end = _end_of(directory)
    while end % _BLOCK_BYTES:
        missing = -end % _BLOCK_BYTES
        letters = max(0, round((missing - besides_bytes) / a_letter_bytes))
        text = os.urandom(letters).hex()[:letters]
        backend.add_change(payment(backend.version + 1, text))
        end, before = _end_of(directory), end
        if end > before and letters:  # not where a new segment was begun
            besides_bytes = end - before - letters * a_letter_bytes


def newest_file(directory: Path) -> Path:
    """The file that changes are appended to."""
    return max(path for path in directory.rglob("*") if re.fullmatch(r"log-\d+|.*\.bkp", path.name))


def _end_of(directory: Path) -> int:
    newest = newest_file(directory)
    if newest.suffix == ".bkp":
        return newest.stat().st_size
    return len(newest.read_bytes().rstrip(b"\x00"))


def files(directory: Path) -> dict[str, str]:
    """The contents of every file of a backup, without files being prepared beside it."""
    return {
        str(path): sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not re.match(r"spare|building\.|.*\.compacting-", path.name)
    }


def _run(url: str, directory: Path, since: str, then: str, at: str) -> dict[str, object]:
    create_backend(url, None)
    append(url, started_node())
    with open_writer(url) as backend:
        if at != "the start":
            for version in range(4, 9):
                backend.add_change(payment(version, long_text(version, 300)))
        if at == "a border":
            fill_to_a_border(backend, directory)
        ready, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(ready, 1)
            time.sleep(1.5 * PAUSE_S)
            os._exit(_set_back(backend, then, directory / "said"))
        SINCE[since](backend)
        with open_reader(url) as reader:
            expected = told(reader.stream_changes())
        before = files(directory)
        os.write(go, b"x")
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        said = json.loads((directory / "said").read_text())
        (directory / "said").unlink()
        with open_reader(url) as reader:
            reader.check()
            found = told(reader.stream_changes())
        after = files(directory)
        untouched = after == before
        go_on(backend)
    with open_reader(url) as reader:
        reader.check()
    return {**said, "untouched": untouched, "whole": found == expected}


def _set_back(backend: Writer, then: str, path: Path) -> int:
    said = []
    for _ in range(2):
        try:
            THEN[then](backend)
            said.append("stored")
        except BackupError as error:
            said.append(f"{type(error).__name__}: {error}")
    path.write_text(json.dumps({"said": said[0], "again": said[1]}))
    return 0


def main() -> None:
    """Goes through all cases in a directory for one kind of backup."""
    kind, place = sys.argv[1:]
    for number, (since, then, at) in enumerate(CASES):
        directory = Path(place) / str(number)
        directory.mkdir()
        outcome = _run(PLACES[kind](directory), directory, since, then, at)
        print(json.dumps({"case": [since, then, at], **outcome}), flush=True)


if __name__ == "__main__":
    main()
