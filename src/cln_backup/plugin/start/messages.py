"""The messages between a start and the processes that prepare a snapshot or compare."""

from __future__ import annotations

from cln_backup.process.channel import Message


class Prepare(Message):
    """The request for a proven copy of the node's database.

    Attributes:
        url: of the backup, which names what unlocks it.
        database: the path of the node's database.
        replica_dir: the kept replica; `None` if there is none.
        node_id: of the node; `None` if its database has none yet.
        version: the only data version that is accepted.
        head_in_doubt: whether the head may never have been committed.
        alarmed: whether the backup is known not to replay to its end.
        timeout_s: how long it may take.
    """

    url: str
    database: str
    replica_dir: str | None
    node_id: str | None
    version: int
    head_in_doubt: bool
    alarmed: bool
    timeout_s: float


class Prepared(Message):
    """The copy is ready, and proven to descend from what the backup holds.

    The process removes it when its parent closes the connection.
    """

    path: str


class Look(Message):
    """Compares a database with its backup.

    Attributes:
        url: of the backup.
        directory: of the follower's replica.
        database: the path of the node's database.
        version: that of the database.
        backup_version: that of the backup; equal, or the next one.
        touched: more tables to compare.
        is_fresh: replays the whole backup, instead of using the replica.
        until: when it must have ended, by the monotonic clock of this machine.
    """

    url: str
    directory: str
    database: str
    version: int
    backup_version: int
    touched: tuple[str, ...]
    is_fresh: bool
    until: float


class Looked(Message):
    """The result, as JSON."""

    found: bytes
