"""Opening the same backup in another process."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends import place_at
from cln_backup.backends.secrets import Secret  # noqa: TC001 - a message has it as a type

if TYPE_CHECKING:
    from cln_backup.backends.contract import Reader


class Opening(NamedTuple):
    """The arguments to open a backup to read without asking the operator; contains secrets.

    Attributes:
        secret: of a key slot; `None` if the backup is not encrypted, or the URL names a file.
        accept_incomplete: whether to accept a copy whose end is missing.
    """

    url: str
    secret: Secret | None = None
    accept_incomplete: bool = False

    def open(self) -> Reader:
        """Opens the backup again. Raises as `Place.open_reader` does."""
        return place_at(self.url).open_reader(
            secret=self.secret, accept_incomplete=self.accept_incomplete
        )
