"""The backup as a destination: whether it opens, whose it is, what its answers are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.backends.events import Event, Noticed
from cln_backup.backends.place import Concession
from cln_backup.model.errors import BackupError, Damaged, Interrupted, Locked
from cln_backup.model.health import Finding, Level
from cln_backup.operations import history

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.contract import Reader
    from cln_backup.backends.place import Place
    from cln_backup.backends.secrets import Secret
    from cln_backup.operations.history import Status

_CONCESSIONS: Final = {
    Concession.UNFENCED: Finding(
        "not-fenced",
        Level.WARNING,
        "Nothing but you keeps two nodes from writing to this backup (fencing=none).",
        "Use a store with put if absent (docs/engines.md). Never start a second node.",
    ),
    Concession.UNSAFE: Finding(
        "not-durable",
        Level.WARNING,
        "The database is accepted although it may lose what it has answered (unsafe=yes).",
        "Switch fsync and full_page_writes on, and remove unsafe=yes from the URL.",
    ),
    Concession.PLAIN: Finding(
        "not-private",
        Level.WARNING,
        "The connection to the backup is not encrypted or not verified by this program.",
        "Use TLS (docs/server.md, docs/engines.md), unless a tunnel of your own encrypts it.",
    ),
    Concession.OPEN: Finding(
        "no-token",
        Level.WARNING,
        "The server is used without a token: anyone who reaches it can use the backup.",
        "Make a token with `backup-cli token`, and name it with token-file=PATH in the URL.",
    ),
}


class Destination(NamedTuple):
    """A backup that was opened to read, if possible.

    Attributes:
        concessions: what its URL gives up.
        status: `None` if it could not be opened.
        refused: why not.
        locked: whether that is only for the lack of a key.
        notices: from its opening.
        node_id: of the node; `None` if unknown.
        runs: whether the node runs, and so may be writing at this moment.
        files: the names of the node's small files in it; `None` if there are none.
        files_damaged: what is damaged of them.
    """

    concessions: frozenset[Concession]
    status: Status | None
    refused: str | None = None
    locked: bool = False
    notices: tuple[str, ...] = ()
    node_id: str | None = None
    runs: bool = False
    files: tuple[str, ...] | None = None
    files_damaged: str | None = None


def gather(place: Place, secret: Secret | None, node_id: str | None, *, runs: bool) -> Destination:
    """Opens the backup, as `backup-cli status` does."""
    notices: list[str] = []

    def noticed(event: Event) -> None:
        if event.noticed is Noticed.FOUND:
            notices.append(event.text)

    found = Destination(place.concessions, None, node_id=node_id, runs=runs)
    try:
        with place.open_reader(secret=secret, on_event=noticed) as reader:
            found = found._replace(status=history.status(reader), notices=tuple(notices))
            return _with_files(found, reader)
    except Locked as error:
        return found._replace(refused=str(error), locked=True)
    except Interrupted:
        raise
    except BackupError as error:
        return found._replace(refused=str(error))


def _with_files(found: Destination, reader: Reader) -> Destination:
    """Reads the small files, so that damage to them is found before they are needed."""
    try:
        kept = reader.kept_files
        newest = None if kept is None else kept.newest()
    except Damaged as error:
        return found._replace(files_damaged=str(error))
    if newest is None:
        return found
    damaged = None
    if newest.damaged:
        damaged = f"The node's files in {newest.damaged[0]} are damaged; an older set is whole."
    names = tuple(file.name for file in newest.files.files)
    return found._replace(files=names, files_damaged=damaged)


def judge(found: Destination) -> Iterator[Finding]:
    """The findings about a destination."""
    for concession in sorted(found.concessions, key=lambda each: each.value):
        yield _CONCESSIONS[concession]
    if found.locked:
        yield Finding(
            "locked",
            Level.WARNING,
            "The backup is encrypted, and was not unlocked: its contents were not looked at.",
            "Give a key, such as --key-file PATH, to have it examined.",
        )
    elif found.refused is not None:
        yield Finding(
            "cannot-open",
            Level.BAD,
            f"The backup cannot be opened: {found.refused.rstrip('.')}.",
            "If the node runs, do not stop it before this is understood. Keep the backup as it is.",
        )
    if found.status is None:
        return
    status = found.status
    if found.node_id is not None and status.node_id not in (None, found.node_id):
        yield Finding(
            "another-nodes-backup",
            Level.BAD,
            f"The backup belongs to the node {status.node_id}, and this node is {found.node_id}.",
            "Two nodes, or two networks of one node, must never share a backup. Look at "
            "backup.lock, and make this node's own backup with `backup-cli init`.",
        )
    if found.notices and not found.runs:
        yield Finding(
            "to-be-repaired",
            Level.WARNING,
            found.notices[0],
            "The next start of the node repairs this, and keeps what it removes.",
        )
    text = f"The backup opens, at data version {status.version}"
    durable = "." if status.durability is None else f". An answer is {status.durability}."
    yield Finding("cannot-open", Level.GOOD, text + durable)
