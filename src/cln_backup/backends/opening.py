"""How another process opens the backup that this one has open."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends import accepting_incomplete_copies, open_backend
from cln_backup.backends.secrets import Secret, unlocking_with

if TYPE_CHECKING:
    from cln_backup.backends.contract import Backend


class Opening(NamedTuple):
    """What opens a backup to read without asking anybody; it holds secrets.

    Attributes:
        secret: what unlocks it; `None` where it is not encrypted, or the URL names a file.
        accept_incomplete: whether a copy whose end is missing is read all the same.
    """

    url: str
    secret: Secret | None
    accept_incomplete: bool

    def open(self) -> Backend:
        """Opens the backup once more. Raises what `open_backend` raises."""
        accepting = accepting_incomplete_copies() if self.accept_incomplete else nullcontext()
        with unlocking_with(self.secret), accepting:
            return open_backend(self.url)
