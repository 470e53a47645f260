"""The contract of a backend: one place that holds one node's backup."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypedDict

from cln_backup.model.change import Kind
from cln_backup.model.errors import BadChange, BadUrl, Discontinuity
from cln_backup.model.position import Position
from cln_backup.model.statements import bumps_data_version_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from typing_extensions import Self

    from cln_backup.backends.inventory import Inventory
    from cln_backup.backends.opening import Opening
    from cln_backup.backends.secrets import Secret
    from cln_backup.model.change import Change, Head


MAX_RIDER_CHARACTERS = 1 << 17
"""lightningd's riders have 26 characters; with a limit, a reader knows what it has to expect."""


class Staged(NamedTuple):
    """A replacement that stands ready beside a backup; see `Backend.stage`.

    Attributes:
        name: what the backend calls it.
        source: what tells the backup that it was made from from the one after a `replace`.
        fold_bytes: where in the backup the part begins that is kept as it is.
        copied_bytes: up to where the backup was copied into it.
        shift_bytes: how much later (negative: earlier) a change stands in the replacement.
        folded: by how many changes the replacement is shorter.
        saved_bytes: by how much it is smaller (negative: larger) than what it replaces.
    """

    name: str
    source: int
    fold_bytes: int
    copied_bytes: int
    shift_bytes: int
    folded: int
    saved_bytes: int


class Key(NamedTuple):
    """One who can unlock a backup.

    Attributes:
        label: its name.
        kind: `passphrase`, `key-file` or `hsm-secret`.
        created_at: seconds since 1970.
    """

    label: str
    kind: str
    created_at: float


class Size(TypedDict):
    """How large a backup is, in the words of the community's plugin."""

    backupsize: int
    version_count: int


class Sizes(TypedDict):
    """How large a backup was and is, as the community's plugin tells it."""

    before: Size
    after: Size


class Statistics(Sizes, total=False):
    """What a compaction changed; nothing, where it tells only what the backup `would_be`."""

    would_be: Size


class Backend(ABC):
    """One backup, opened by its URL (`open_backend`), for reading or as its one writer.

    A writer appends changes and may drop the head; nobody else changes a backup. Readers may be
    open at the same time, in other processes too: each sees the backup as it was when opened.
    A writer whose write or sync failed refuses everything after it: what reached the disk is
    found out by the next one that opens the backup.

    Attributes:
        url: as given.
        version: data version of the head; 0 when the backup is empty.
        prev_version: the version that `rewind` goes back to.
        version_count: number of changes.
        notices: what was found and mended when the backup was opened, for the log.
        patience_s: how long a call may wait for a storage that is out of reach; `None` for as
            long as the URL says. A storage of this machine is never waited for.
        remote: whether the storage is reached over a network.
        exclusive: whether nobody else can read while this is open, so that the writer itself has
            to ask for a compaction (`compact`), and wait for it.
        can_encrypt: whether the format can; otherwise nothing about keys works.
    """

    url: str
    version: int
    prev_version: int
    version_count: int
    notices: list[str]
    patience_s: float | None = None
    remote: ClassVar[bool] = False
    exclusive: bool = False
    can_encrypt: ClassVar[bool] = False

    @classmethod
    def path_at(cls, url: str) -> str | None:  # noqa: ARG003
        """The path in a URL of files on this machine. Raises `BadUrl`."""
        return None

    @classmethod
    @abstractmethod
    def create(cls, url: str, base: Change | None) -> None:
        """Makes a new backup, empty or with a first snapshot.

        Durable, with its name, when it returns; before that, nothing stands at the URL.

        Raises:
            AlreadyExists: something stands at the URL; it was left as it is.
            BadUrl, BadChange, StorageError: nothing was made.
        """

    @classmethod
    @contextmanager
    def creating(cls, url: str, base: Change | None) -> Iterator[None]:
        """Makes a new backup as `create` does, and takes it away again where the block fails.

        A storage that cannot take it away, such as a server, keeps it.
        """
        cls.create(url, base)
        yield

    @classmethod
    @contextmanager
    def building(cls, url: str) -> Iterator[str]:
        """The URL at which to build a backup that appears at `url` when the block ends well.

        Durable, with its name, then; whatever goes wrong inside, or is killed, nothing at `url` is
        taken for a backup. A storage that has no such place gives `url` itself.

        Raises:
            AlreadyExists: something stands at the URL; it was left as it is.
            BadUrl, StorageError.
        """
        yield url

    @classmethod
    @abstractmethod
    def open(cls, url: str, *, writable: bool) -> Self:
        """Opens a backup; a writer mends what a crash left behind, a reader only sees through it.

        Raises:
            NotFound: there is no backup at the URL.
            WriterConflict: another process is the writer.
            Damaged: there are bytes that cannot be right; nothing was changed.
            BadUrl, StorageError.
        """

    @property
    @abstractmethod
    def head(self) -> Head | None:
        """The last change; `None` when the backup is empty."""

    @property
    def position(self) -> Position:
        """Where the history ends; without a digest where the format has no room for one."""
        return Position(self.version, self.version_count, None)

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """What the backup takes on its storage."""

    @property
    @abstractmethod
    def last_change_at(self) -> float | None:
        """When the head was stored, in seconds since 1970; `None` when that is not known."""

    @property
    def opening(self) -> Opening | None:
        """What opens this backup once more, for another process of this program to read it.

        `None` where that takes a server's time, which the backup's own connection takes already.
        """
        return None

    @property
    def dated_by_file(self) -> bool:
        """Whether `last_change_at` is when a file was last written, for want of anything better.

        Programs that copy files may give the copy another time.
        """
        return False

    @property
    def node_id(self) -> str | None:
        """The node whose backup this is; `None` when that is not known."""
        return None

    @classmethod
    def inventory(cls, url: str) -> Inventory | None:  # noqa: ARG003
        """What belongs to the backup; nothing needs to be unlocked for it.

        `None` where the storage is a server, which does not tell.

        Raises:
            NotFound, Damaged, BadUrl, StorageError.
        """
        return None

    @property
    def storage_dir(self) -> str | None:
        """A directory on the disk that holds the backup; `None` where a server has it."""
        return None

    @property
    def scratch_dir(self) -> str | None:
        """A directory beside the backup where a plain copy of the database may lie for a while.

        `None` where there is none: a server's backup, and one that is encrypted.
        """
        return self.storage_dir

    @abstractmethod
    def claim(self, node_id: str) -> None:
        """Makes sure that the backup is this node's.

        For the writer, before its first change, with which it is remembered where that is possible.

        Raises:
            Discontinuity: it is another node's.
            StorageError: it cannot be remembered.
        """

    @abstractmethod
    def add_change(self, change: Change) -> None:
        """Appends a change; it is on stable storage when this returns.

        A change that says when it was stored keeps that time, where the format has room for it.
        The change must follow the head: a transaction makes `version + 1`, a rider keeps
        `version`, a snapshot may stand anywhere at or after it. Not to be tried again after an
        error: a failed sync cannot be repaired by a second one.

        Raises:
            Discontinuity, BadChange: nothing was written.
            StorageError: the change may or may not be there; this writer is finished.
        """

    @abstractmethod
    def rewind(self) -> None:
        """Drops the head, which the node did not commit; it is gone for good when this returns.

        The dropped change is set aside where an operator finds it, and never deleted. A second
        rewind without a change between is refused: only one change can be in doubt.

        Raises:
            Discontinuity: there is nothing to drop; nothing was changed.
            StorageError: the head may or may not be there; this writer is finished.
        """

    @abstractmethod
    def stream_changes(self, start: int = 0, *, head: bool = True) -> Iterator[Change]:
        """The changes from version `start` on, in order, as they were when the backup was opened.

        Each has the time at which it was stored, 0 where that is not known.
        Memory does not grow with the backup; a snapshot must be read before the next change is
        asked for. With `head=False` the last change is left out.

        Raises:
            Damaged, StorageError.
        """

    def read_through(self, progress: Callable[[Change], None] | None = None) -> None:
        """Reads all that is stored, and checks what can be checked without a replay.

        A backend whose format has checksums may do so without taking the changes apart; then
        `progress` is not called.

        Raises:
            Damaged, StorageError.
        """
        for change in self.stream_changes():
            if change.snapshot is not None:
                for _ in change.snapshot.chunks():
                    pass
            if progress is not None:
                progress(change)

    def dropped_changes(self) -> Iterator[Change]:
        """The changes that `rewind` dropped, where they stay in the backup and not beside it.

        Raises:
            BadUrl: this backend keeps them elsewhere; the message says where.
            Damaged, StorageError.
        """
        raise BadUrl(
            "Only a dir: backup lists what was dropped from it. Beside a file: backup each dropped "
            "change lies in a file of its own, NAME.dropped-VERSION; behind a server, beside the "
            "backup there."
        )

    @classmethod
    def list_keys(cls, url: str) -> list[Key]:
        """All who can unlock a backup; nothing needs to be unlocked for it.

        Raises:
            BadUrl: this format cannot be encrypted.
            NotFound, Damaged, StorageError.
        """
        raise _cannot_encrypt(url)

    def add_key(self, secret: Secret, label: str) -> None:  # noqa: ARG002
        """Lets one more secret unlock the backup; on stable storage when it returns.

        Raises:
            Locked: the backup is not encrypted.
            AlreadyExists: there is a key of this name.
            BadUrl, StorageError.
        """
        raise _cannot_encrypt(self.url)

    @classmethod
    def remove_key(cls, url: str, label: str) -> None:  # noqa: ARG003
        """Lets a secret no longer unlock a backup; on stable storage when it returns.

        Raises:
            NotFound, Locked, BadUrl: nothing was changed.
        """
        raise _cannot_encrypt(url)

    @abstractmethod
    def stage(self, base: Change | None, *, foreign_keys: bool) -> Staged:
        """Builds a replacement beside the backup: `base`, then the head and all after it.

        For a reader, also in another process than the writer's: it holds nothing up. `base` is a
        snapshot of everything before the head (`None` when the head is a snapshot itself), after
        which foreign keys are enforced or not.

        Raises:
            StorageError: what was built is removed; the backup is as before.
        """

    @abstractmethod
    def stage_more(self, staged: Staged) -> Staged:
        """Copies what the writer appended since into the replacement. As `stage` otherwise."""

    @abstractmethod
    def replace(self, staged: Staged) -> None:
        """Puts the replacement in the backup's place, with what was appended to the last moment.

        For the writer; takes about the time of one append. Atomic: at every moment either the
        old backup or the new one is there, whole; the new one when this returns.

        Raises:
            StorageError: the backup is as before and this writer goes on; or, where it failed in
                the swap itself, the writer is finished and the next one finds one of the two.
        """

    @abstractmethod
    def discard(self) -> None:
        """Removes all replacements that are not in use; the backup is as before."""

    def compact(self) -> Statistics | None:
        """Has the storage compact the backup itself, where that is a server that can.

        For a reader or the writer; a writer goes on meanwhile. `None`, with nothing done, where
        the work is the caller's, by `stage` and `replace`.

        Raises:
            StorageError: the backup is as before.
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """Lets go of the backup, and of the right to write. Nothing is written."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _cannot_encrypt(url: str) -> BadUrl:
    scheme = url.partition(":")[0]
    return BadUrl(f"A {scheme}: backup cannot be encrypted; a dir: backup can.")


def size_of(backend: Backend) -> Size:
    """How large the backup is now, in bytes and changes."""
    return {"backupsize": backend.size_bytes, "version_count": backend.version_count}


def nothing_to_drop() -> Discontinuity:
    """What `rewind` raises where the head is not in doubt."""
    return Discontinuity(
        "There is no change that could be dropped: only the last one can be in doubt, and it was "
        "dropped already or there is none. Nothing was changed."
    )


def check_follows(change: Change, version: int, *, empty: bool) -> None:
    """Checks that a change may be appended to a backup that stands at `version`.

    Raises:
        Discontinuity: it does not follow; it belongs to another moment or another node.
        BadChange: it is no transaction that lightningd sends, so that nobody could tell later
            whether it is whole.
    """
    kind = change.kind
    if kind is Kind.SNAPSHOT:
        follows = empty or change.version >= version
    else:
        follows = change.version == version + (kind is Kind.TRANSACTION)
    if not follows:
        raise Discontinuity(
            f"A {kind.value} for data version {change.version} does not follow the backup, which "
            f"stands at {version}; nothing was written."
        )
    if change.transaction is None:
        return
    if kind is Kind.RIDER:
        if sum(map(len, change.transaction)) > MAX_RIDER_CHARACTERS:
            raise BadChange("A call made of PRAGMA statements is larger than lightningd's are.")
    elif not change.transaction or (
        bumps_data_version_to(change.transaction[-1]) != change.version
    ):
        raise BadChange(
            f"The transaction for data version {change.version} does not end with the "
            "statement that sets this version, as every transaction of lightningd does; "
            "nothing was written. Is this release of lightningd newer than cln-backup? "
            "Go back to the release that worked, and report this."
        )
