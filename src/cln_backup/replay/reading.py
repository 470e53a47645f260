"""The process that reads changes ahead: `python -m cln_backup.replay.reading`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import BackupError
from cln_backup.process.parent import Parent, serve
from cln_backup.replay.messages import (
    End,
    From,
    Piece,
    RawRun,
    Run,
    SnapshotBegin,
    Start,
    standing_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.model.change import Change

_RUN_CHARACTERS: Final = 1 << 17
"""Bytes of statements that are sent at once."""


def _run(start: Start, parent: Parent[From]) -> None:
    with start.opening.open() as backend:
        parent.say(standing_of(backend))
        if (asked := parent.next()) is not None:
            _send_all(backend.stream_changes(asked.version, head=start.head), parent)


def _send_all(changes: Iterator[Change], parent: Parent[From]) -> None:
    """Sends the changes in batches; before an error, those that could be read."""
    run: list[tuple[int, int | None, tuple[str, ...]]] = []
    characters = 0
    try:
        for change in changes:
            if change.transaction is None:
                _send(run, parent)
                run, characters = [], 0
                _send_snapshot(change, parent)
                continue
            run.append((change.version, change.stored_ms, tuple(change.transaction)))
            characters += sum(map(len, change.transaction))
            if characters >= _RUN_CHARACTERS:
                _send(run, parent)
                run, characters = [], 0
    except BackupError:
        _send(run, parent)
        raise
    _send(run, parent)
    parent.say(End())


def _send(run: list[tuple[int, int | None, tuple[str, ...]]], parent: Parent[From]) -> None:
    try:
        parent.say(Run(run))
    except UnicodeEncodeError:
        parent.say(
            RawRun(
                [
                    (version, stored_ms, tuple(t.encode("utf-8", "surrogateescape") for t in texts))
                    for version, stored_ms, texts in run
                ]
            )
        )


def _send_snapshot(change: Change, parent: Parent[From]) -> None:
    assert change.snapshot is not None
    parent.say(SnapshotBegin(change.version, change.stored_ms, change.snapshot.size_bytes))
    for chunk in change.snapshot.chunks():
        parent.say(Piece(chunk))


if __name__ == "__main__":
    serve(_run, Start, From)
