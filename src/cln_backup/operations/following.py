"""The changes of a backup as they come, like `tail -f`."""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import TYPE_CHECKING, Final, NoReturn

from cln_backup.backends import place_at
from cln_backup.model.errors import BadUrl, Damaged, Discontinuity, Interrupted
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
_ATTEMPTS: Final = 5
_PAUSE_S: Final = 0.2


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
    following, attempts = _Following(show), _ATTEMPTS
    with contextlib.suppress(Interrupted), interruption.deferred():
        while True:
            shown = following.last
            try:
                with place_at(url).open_reader(secret=secret, on_event=on_event) as reader:
                    if shown is not None:
                        start = shown.version + 1
                    following.run(reader, start)
            except Damaged:
                # A file: backup is changed in place, also beside those who read it.
                attempts = attempts - 1 if following.last == shown else _ATTEMPTS
                if not attempts:
                    raise
                with interruption.at_once():
                    time.sleep(_PAUSE_S)


class _Following:
    """The end of what was shown, and what is after it.

    Attributes:
        last: the line that was shown last.
    """

    def __init__(self, show: Callable[[LogLine, bool], None]) -> None:
        self._show = show
        self.last: LogLine | None = None

    def run(self, reader: Reader, start: int | None) -> NoReturn:
        """Shows the changes from a version on, by default the last ones, and then each new one."""
        if not reader.can_be_followed:
            raise BadUrl(
                "The server's release is too old to be followed, or it is the community's. "
                "Nothing was changed. Use log without --follow."
            )
        if start is None:
            start = max(0, reader.version - _FIRST_VERSIONS + 1)
        self._show_all(reader.stream_changes(start))
        while True:
            seen = reader.standing
            if not reader.wait_for_more(_WAIT_S):
                continue
            try:
                self._show_all(reader.stream_changes(after=seen.position))
            except Discontinuity:
                self._after_a_drop(reader, seen.position, seen.prev_version)

    def _show_all(self, changes: Iterator[Change]) -> None:
        for change in changes:
            self.last = line_of(change)
            self._show(self.last, False)
            interruption.check()

    def _after_a_drop(self, reader: Reader, gone: Position, prev_version: int) -> None:
        """Continues where the head that was shown last is no longer in the backup."""
        before = Position(prev_version, gone.changes - 1, None)
        changes = reader.stream_changes(after=before)
        try:
            first = next(changes, None)
        except Discontinuity:  # a compaction has folded what was before it, and perhaps itself
            self._show_all(reader.stream_changes(gone.version + 1))
            return
        if self.last is not None and self.last.version == gone.version:
            self._show(self.last, True)
        if first is not None:
            self._show_all(itertools.chain([first], changes))
