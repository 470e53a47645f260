"""The messages between the two processes of a compaction."""

from __future__ import annotations

from cln_backup.backends.contract import Size, Staged, Statistics
from cln_backup.process.channel import Message


class Start(Message):
    """The request to compact.

    Attributes:
        scratch_dir: where to replay; `None` for the backup's default.
        if_it_pays: whether to keep the backup unchanged if a compaction is not worth it.
    """

    url: str
    scratch_dir: str | None
    if_it_pays: bool


class Ready(Message):
    """A replacement is staged; `None` if there is nothing to fold."""

    staged: Staged | None


class More(Message):
    """The answer to `Ready`: copy the changes appended since."""


class Compacted(Message):
    """A server has compacted the backup itself."""

    statistics: Statistics


class NotWorthIt(Message):
    """The staged replacement was removed: the backup would not get smaller."""

    would_be: Size
