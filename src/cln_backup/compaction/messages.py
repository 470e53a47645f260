"""What the two processes of a compaction tell each other."""

from __future__ import annotations

from cln_backup.backends.contract import Size, Staged, Statistics
from cln_backup.process.channel import Message


class Start(Message):
    """What to compact.

    Attributes:
        scratch_dir: where to replay; `None` for the place that the backup has for it.
        if_it_pays: whether to leave the backup as it is where a compaction is not worth it.
    """

    url: str
    scratch_dir: str | None
    if_it_pays: bool


class Ready(Message):
    """A replacement is staged; `None` where there is nothing to fold."""

    staged: Staged | None


class More(Message):
    """The answer to `Ready`: copy what was appended since."""


class Compacted(Message):
    """A server has compacted the backup itself."""

    statistics: Statistics


class NotWorthIt(Message):
    """What was staged is removed: the backup would not get smaller."""

    would_be: Size
