"""A node's writer that does, by chance, everything that a node may do to its backup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup.backends import open_writer
from cln_backup.compaction.compact import compact
from cln_backup.model.change import Kind
from tests.histories import OFF, ON, long_text, payment, rider, started_node

if TYPE_CHECKING:
    import random

    from cln_backup.backends.contract import Writer
    from cln_backup.model.change import Change


class RandomNode:
    """The writer, and the history that it has written."""

    def __init__(self, url: str, chance: random.Random, *, compacts: bool) -> None:
        self._url = url
        self._compacts = compacts
        self._chance = chance
        self.history: list[Change] = []
        self._writer: Writer = open_writer(url)
        self._texts = 0
        for change in started_node():
            self._add(change)

    def _add(self, change: Change) -> None:
        self._writer.add_change(change)
        self.history.append(change)

    def step(self) -> None:
        """Does one thing that a node may do to its backup."""
        head = self.history[-1]
        action = self._chance.choices(
            ("pay", "large", "rider", "drop", "restart", "compact"),
            (8, 1, 3, 4, 1, int(self._compacts)),
        )[0]
        if action in ("pay", "large"):
            self._texts += 1
            text = long_text(self._texts, 90_000 if action == "large" else 40)
            self._add(payment(head.version + 1, text))
        elif action == "rider":
            self._add(rider(head.version, self._chance.choice((OFF, ON))))
        elif action == "drop" and head.kind is Kind.TRANSACTION and self._writer.standing.droppable:
            self._writer.rewind()
            self.history.pop()
        elif action == "restart":
            self.close()
            self._writer = open_writer(self._url)
        elif action == "compact":
            self.close()
            compact(self._url)
            self._writer = open_writer(self._url)

    def close(self) -> None:
        self._writer.close()
