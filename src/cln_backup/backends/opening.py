"""How another process opens the backup that this one has open."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends import place_at
from cln_backup.backends.secrets import Secret  # noqa: TC001 - a message has it as a type

if TYPE_CHECKING:
    from cln_backup.backends.contract import Reader


class Opening(NamedTuple):
    """What opens a backup to read without asking anybody; it holds secrets.

    Attributes:
        secret: what unlocks it; `None` where it is not encrypted, or the URL names a file.
        accept_incomplete: whether a copy whose end is missing is read all the same.
    """

    url: str
    secret: Secret | None = None
    accept_incomplete: bool = False

    def open(self) -> Reader:
        """Opens the backup once more. Raises as `Place.open_reader` does."""
        return place_at(self.url).open_reader(
            secret=self.secret, accept_incomplete=self.accept_incomplete
        )
