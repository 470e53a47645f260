"""The order of changes: those that a writer accepts, and those after a position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from cln_backup.formats.digests import digest_of_change
from cln_backup.model.change import Kind
from cln_backup.model.errors import BadChange, Discontinuity
from cln_backup.model.position import UNKNOWN, Position
from cln_backup.model.statements import bumps_data_version_to, is_bump_as_sent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.model.change import Change

MAX_RIDER_CHARACTERS = 1 << 17
"""lightningd's riders have 26 characters; a limit tells readers how much to expect."""

_MAX_SEEN: Final = 256


def nothing_to_drop() -> Discontinuity:
    """The error of `rewind` if the head is not in doubt."""
    return Discontinuity(
        "There is no change to drop. Nothing was changed. Only the last change can be in doubt, "
        "and it was dropped already or does not exist."
    )


_TRANSACTION: Final = Kind.TRANSACTION  # in the hot path: asking an `Enum` for it costs more


def check_follows(change: Change, version: int, *, empty: bool) -> Kind:
    """Checks that a change may be appended to a backup at `version`; returns its kind.

    Raises:
        Discontinuity: it does not follow; it belongs to another moment or another node.
        BadChange: it is not a transaction that lightningd sends, so it would be impossible to
            tell later whether it is complete.
    """
    transaction = change.transaction
    next_one = version + 1
    if transaction and change.version == next_one and is_bump_as_sent(transaction[-1], next_one):
        return _TRANSACTION  # nearly every call
    kind = change.kind
    if kind is Kind.SNAPSHOT:
        follows = empty or change.version >= version
    else:
        follows = change.version == version + (kind is Kind.TRANSACTION)
    if not follows:
        raise Discontinuity(
            f"A {kind.value} for data version {change.version} does not follow the backup, which "
            f"is at {version}; nothing was written."
        )
    if transaction is None:
        return kind
    if kind is Kind.RIDER:
        if sum(map(len, transaction)) > MAX_RIDER_CHARACTERS:
            raise BadChange(
                "A call of PRAGMA statements is larger than any of lightningd's; nothing was "
                "written."
            )
    elif not transaction or bumps_data_version_to(transaction[-1]) != change.version:
        raise BadChange(
            f"The transaction for data version {change.version} does not end with the "
            "statement that sets this version, as every transaction of lightningd does; "
            "nothing was written. Is this release of lightningd newer than cln-backup? "
            "Go back to the release that worked, and report this."
        )
    return kind


Numbered: TypeAlias = "tuple[int, Change, bytes]"
"""A change, its number in the history, and the digest after it; `UNKNOWN` if it is unknown."""


def numbered(changes: Iterator[Change], first: int = 1) -> Iterator[Numbered]:
    """Changes without digests, of which the first has this number."""
    return ((number, change, UNKNOWN) for number, change in enumerate(changes, first))


class SeenHeads:
    """The transactions that a reader has seen as the head, without the history's digest.

    Only a transaction is ever dropped by a node. If its replacement has the same number, the two
    positions are equal, and nothing but their contents tells them apart.
    """

    def __init__(self) -> None:
        self._digests: dict[Position, bytes] = {}

    def remember(self, position: Position, digest: bytes) -> None:
        """Remembers the digest of the head at a position (`digest_of_change`)."""
        if self._digests.setdefault(position, digest) != digest:
            self._digests[position] = b""
        if len(self._digests) > _MAX_SEEN:
            del self._digests[next(iter(self._digests))]

    def digest_at(self, position: Position) -> bytes | None:
        """The digest of the head at a position; `None` if it was not seen.

        Raises:
            Discontinuity: two different changes were seen there.
        """
        digest = self._digests.get(position)
        if digest == b"":
            raise position_is_gone(position)
        return digest


def changes_after(
    numbered: Iterator[Numbered],
    after: Position,
    last: int | None,
    seen: bytes | None = None,
) -> Iterator[Change]:
    """The changes after a position, of those that come with their numbers in the history.

    The change with the number `last` is left out. With `seen`, the change at the position must
    have this digest (`digest_of_change`).

    Raises:
        Discontinuity: the position is not in this history.
    """
    found = after.changes == 0
    for number, change, digest in numbered:
        here = Position(change.version, number, None if digest == UNKNOWN else digest)
        if here[:2] == after[:2] and not here.is_other_history(after):
            if seen is not None and seen != digest_of_change(change):
                break
            found = True
        elif number >= after.changes:
            if not found:
                break
            if number != last:
                yield change
    if not found:
        raise position_is_gone(after)


def position_is_gone(position: Position) -> Discontinuity:
    """The error for a request of changes after a position that is not in the history."""
    return Discontinuity(
        f"The change for data version {position.version} that was read before is no longer in the "
        "backup: it was dropped, or a compaction has folded it. Read the backup from its start."
    )
