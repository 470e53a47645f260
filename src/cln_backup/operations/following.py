"""The changes of a backup as they come, like `tail -f`."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Final

from cln_backup.backends import place_at
from cln_backup.model.errors import BadUrl, Discontinuity, Interrupted
from cln_backup.model.position import Position
from cln_backup.operations.history import LogLine, line_of
from cln_backup.storage import interruption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cln_backup.backends.contract import Reader
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.secrets import Secret
    from cln_backup.model.change import Change

_WAIT_S: Final = 30.0
_FIRST_VERSIONS: Final = 10


def follow(
    url: str,
    show: Callable[[LogLine, bool], None],
    start: int | None = None,
    *,
    secret: Secret | None = None,
    on_event: OnEvent,
) -> None:
    """Shows the changes from version `start` on, and then each new one.

    Without `start`, begins with the last ten versions. `show` is called with `True` for a change
    that was shown and is dropped now: the node never committed it. Returns when a signal stops
    this process.

    Raises:
        NotFound, Damaged, Locked, StorageError, Unreachable: as when a reader is opened.
        BadUrl: the server is too old to be followed.
    """
    with (
        contextlib.suppress(Interrupted),
        interruption.deferred(),
        place_at(url).open_reader(secret=secret, on_event=on_event) as reader,
    ):
        if not reader.can_be_followed:
            raise BadUrl(
                "The server's release is too old to be followed, or it is the community's. "
                "Nothing was changed. Use log without --follow."
            )
        if start is None:
            start = max(0, reader.version - _FIRST_VERSIONS + 1)
        _Following(reader, show).run(start)


class _Following:
    """The end of what was shown, and what is after it."""

    def __init__(self, reader: Reader, show: Callable[[LogLine, bool], None]) -> None:
        self._reader, self._show = reader, show
        self._last: LogLine | None = None

    def run(self, start: int) -> None:
        """Shows the changes from a version on; never returns."""
        self._show_all(self._reader.stream_changes(start))
        while True:
            seen = self._reader.standing
            if not self._reader.wait_for_more(_WAIT_S):
                continue
            try:
                self._show_all(self._reader.stream_changes(after=seen.position))
            except Discontinuity:
                self._after_a_drop(seen.position, seen.prev_version)

    def _show_all(self, changes: Iterator[Change]) -> None:
        for change in changes:
            self._last = line_of(change)
            self._show(self._last, False)
            interruption.check()

    def _after_a_drop(self, gone: Position, prev_version: int) -> None:
        """Continues where the head that was shown last is no longer in the backup."""
        before = Position(prev_version, gone.changes - 1, None)
        changes = self._reader.stream_changes(after=before)
        try:
            first = next(changes, None)
        except Discontinuity:  # a compaction has folded what was before it, and perhaps itself
            self._show_all(self._reader.stream_changes(gone.version + 1))
            return
        if self._last is not None and self._last.version == gone.version:
            self._show(self._last, True)
        if first is not None:
            self._show_all(itertools.chain([first], changes))
