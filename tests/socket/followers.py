"""A follower beside a server in this process."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cln_backup.server.following import Following
from cln_backup.server.served import Served
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cln_backup.server.node import Node


@contextlib.contextmanager
def followed(nodes: Mapping[str, Node], replicas: str | None = None) -> Iterator[Following]:
    """Follows the backups of a server while the block runs."""
    found = Following(nodes, replicas)
    found.start()
    try:
        yield found
    finally:
        found.stop()


def wait_until_proven(node: Node, version: int) -> None:
    """Waits until a backup is proven up to a version, at least."""
    assert isinstance(node, Served)
    wait_until(
        lambda: node.proof.version >= version and node.proof.is_followed(),
        lambda: node.proof.progress,
    )
