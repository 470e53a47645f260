"""The worth of a server's answers: what is true of a change when it has answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

FACTS: Final = """
SELECT current_setting('server_version_num')::int8, pg_backend_pid()::int8,
    (SELECT extract(epoch FROM backend_start)::text FROM pg_stat_activity
     WHERE pid = pg_backend_pid()),
    (SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'),
    current_setting('synchronous_standby_names'), current_setting('fsync'),
    current_setting('full_page_writes')
"""
"""Asks for the release, the server's process and when it was started, and for its settings."""

WAITS: Final = ("on", "remote_apply")
"""The values of `synchronous_commit` with which a commit waits until it is as durable as it gets.

`local` waits for no standby, and `remote_write` not for a standby's disk.
"""


class Worth(NamedTuple):
    """The worth of a server's answers, by its settings.

    Attributes:
        commit: `synchronous_commit` as the role has it; a session raises it to one of `WAITS`.
        standbys: `synchronous_standby_names`; empty if no standby is waited for.
        fsync, full_page_writes: whether they are on.
    """

    commit: str
    standbys: str
    fsync: bool
    full_page_writes: bool

    @property
    def lacks(self) -> tuple[str, ...]:
        """The settings that are off, so that a loss of power may destroy what was answered."""
        named = (("fsync", self.fsync), ("full_page_writes", self.full_page_writes))
        return tuple(name for name, is_on in named if not is_on)

    def __str__(self) -> str:
        text = "on the disk of the server"
        if self.lacks:
            text = f"not on stable storage ({' and '.join(self.lacks)} off)"
        if self.standbys:
            text += f", and of its synchronous standbys ({self.standbys})"
        else:
            text += " alone; no synchronous standby is configured"
        if self.commit not in WAITS:
            text += f" (synchronous_commit is {self.commit} for this role, and on for the backup)"
        return text


def worth_of(settings: Sequence[object]) -> Worth:
    """The worth, from the last columns of `FACTS`."""
    commit, standbys, fsync, pages = settings
    return Worth(str(commit), str(standbys), fsync == "on", pages == "on")
