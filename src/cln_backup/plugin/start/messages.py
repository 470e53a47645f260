"""The messages between a start and the process that prepares its snapshot."""

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
