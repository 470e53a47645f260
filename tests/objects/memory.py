"""A store in memory, for searches over many orders of events; it keeps what it did, in order.

The requests of a client may be lost, with or without their effect, or have it later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from cln_backup.backends.events import ignore
from cln_backup.backends.objects import opening, writer
from cln_backup.backends.objects.place import ObjectsAt, ObjectsPlace
from cln_backup.formats.v1 import pack_transaction
from cln_backup.model.errors import Unreachable
from cln_backup.model.position import (
    EMPTY,
    Position,
    after_snapshot,
    after_statements,
    digest_of_snapshot,
)
from cln_backup.storage.bucket import Bucket, Found, Listed

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator, Sequence

    from cln_backup.backends.events import OnEvent
    from cln_backup.model.change import Change


class Done(NamedTuple):
    """A request that had an effect; one that removes has no content."""

    key: str
    content: bytes | None


class Memory:
    """The store.

    Attributes:
        objects: by key.
        done: everything that had an effect.
        delayed: requests that are still on their way.
    """

    def __init__(self, done: Iterable[Done] = ()) -> None:
        self.objects: dict[str, bytes] = {}
        self.done: list[Done] = []
        self.delayed: list[Done] = []
        for one in done:
            self.do(one)

    def do(self, one: Done) -> None:
        """Does a request: puts if absent, or removes."""
        if one.content is None:
            if self.objects.pop(one.key, None) is None:
                return
        elif self.objects.setdefault(one.key, one.content) is not one.content:
            return
        self.done.append(one)


class MemoryBucket(Bucket):
    """One client of the store, whose requests are lost with a chance of `loses`."""

    def __init__(
        self, memory: Memory, chance: random.Random | None = None, loses: float = 0.0
    ) -> None:
        super().__init__("s3://memory/node", 1.0)
        self.memory = memory
        self._chance = chance
        self._loses = loses

    def _do(self, one: Done) -> None:
        chance = self._chance
        if chance is None or chance.random() >= self._loses:
            self.memory.do(one)
            return
        fate = chance.choice(("lost", "answer lost", "delayed"))
        if fate == "answer lost":
            self.memory.do(one)
        elif fate == "delayed":
            self.memory.delayed.append(one)
        raise Unreachable("no answer")

    def put_new(self, key: str, content: bytes) -> bool:
        self._do(Done(key, content))
        return self.memory.objects[key] == content

    def read(self, key: str, offset_bytes: int, length_bytes: int) -> Found | None:
        found = self.memory.objects.get(key)
        if found is None:
            return None
        return Found(found[offset_bytes : offset_bytes + length_bytes], len(found), 0.0)

    def status(self, key: str) -> Listed | None:
        found = self.memory.objects.get(key)
        return None if found is None else Listed(key, len(found), 0.0)

    def list(self, prefix: str = "") -> Sequence[Listed]:
        objects = self.memory.objects
        return [
            Listed(key, len(objects[key]), 0.0) for key in sorted(objects) if key.startswith(prefix)
        ]

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._do(Done(key, None))


class MemoryPlace(ObjectsPlace):
    """A place whose bucket is in memory."""

    def __init__(self, bucket: MemoryBucket) -> None:
        super().__init__("s3://memory/node")
        self.at = ObjectsAt("s3://memory/node", "memory")
        self.memory_bucket = bucket

    def bucket(self, limit_s: float, on_event: OnEvent = ignore) -> Bucket:
        del limit_s, on_event
        return self.memory_bucket


class _NoLock:
    def __init__(self, _name: str) -> None:
        pass

    def release(self) -> None:
        pass


@pytest.fixture
def many_machines() -> Iterator[None]:
    """Each writer is on a machine of its own, and does no maintenance by itself."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(opening, "MachineLock", _NoLock)
        patched.setattr(writer.ObjectsWriter, "_start_upkeep", lambda _: None)
        yield


def position_of(history: Sequence[Change]) -> Position:
    """The position after a history, computed from its content alone."""
    digest = EMPTY
    for change in history:
        if change.transaction is not None:
            digest = after_statements(digest, change.version, pack_transaction(change.transaction))
        else:
            assert change.snapshot is not None
            digest = after_snapshot(digest, change.version, digest_of_snapshot(change.snapshot))
    return Position(history[-1].version if history else 0, len(history), digest)
