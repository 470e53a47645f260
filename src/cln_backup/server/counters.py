"""Counters of one backup since the server was started."""

from __future__ import annotations


class Counters:
    """Plain numbers, which the metrics show.

    Attributes:
        changes: stored.
        received_bytes: of closed connections.
        compactions: finished.
        self_compactions: of those, the ones that the server began by itself.
        refusals: requests that were refused.
    """

    def __init__(self) -> None:
        self.changes = 0
        self.received_bytes = 0
        self.compactions = 0
        self.self_compactions = 0
        self.refusals = 0
