"""Whatever prefix of the requests arrived: the backup is right, and a writer continues it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends.objects.log_objects import LogObjects
from cln_backup.backends.objects.merging import merge
from cln_backup.backends.objects.upkeep import remove_expired
from cln_backup.model.change import Change
from cln_backup.model.errors import NotFound, Unreachable
from cln_backup.storage.remote_objects import RemoteObjects
from tests.histories import image, long_text, payment, prepared, rider, take_over
from tests.objects.memory import (
    Done,
    Memory,
    MemoryBucket,
    MemoryPlace,
    many_machines,
    position_of,
)
from tests.soak import SOAK

if TYPE_CHECKING:
    from cln_backup.model.position import Position

__all__ = ["many_machines"]

_STEPS = 30


class _Day:
    """A node's day: its requests, and after how many of them it was answered what."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.memory = Memory()
        self.place = MemoryPlace(MemoryBucket(self.memory))
        self.history: list[Change] = []
        with self.place.creating():
            pass
        self.answers: list[tuple[int, Position]] = []
        self.answered()
        for _ in range(_STEPS):
            self.session()

    def answered(self) -> None:
        self.answers.append((len(self.memory.done), position_of(self.history)))

    def session(self) -> None:
        """What a node does between a start and a stop."""
        with self.place.open_writer() as writer:
            for _ in range(self.chance.randrange(4)):
                version = self.history[-1].version if self.history else 0
                kind = self.chance.choice(("payment", "payment", "rider", "snapshot", "drop"))
                if kind == "drop" and writer.standing.droppable:
                    writer.rewind()
                    self.history.pop()
                else:
                    text = long_text(self.chance.randrange(99), 60)
                    change = payment(version + 1, text)
                    if kind == "snapshot" or not self.history:
                        change = Change(version + 2, image(text), None)
                    elif kind == "rider":
                        change = rider(version, "PRAGMA foreign_keys = ON;")
                    writer.add_change(change)
                    self.history.append(change)
                self.answered()
            if self.chance.random() < 0.1 and len(self.history) > 5:
                with self.place.open_reader() as reader:
                    base = Change(self.history[-2].version, image("folded"), None)
                    take_over(writer, prepared(reader, base, foreign_keys=True))
        objects = LogObjects(self.place.memory_bucket)
        if self.chance.random() < 0.3:
            merge(objects, unmerged=self.chance.randrange(1, 3), least=2)
        if self.chance.random() < 0.1:
            remove_expired(objects, 0, 0, grace_s=-1.0)

    def allowed(self, requests: int) -> list[Position]:
        """What was answered by then, and what the node was waiting for."""
        before = [position for done, position in self.answers if done <= requests]
        after = [position for done, position in self.answers if done > requests]
        return [*before[-1:], *after[:1]]


@pytest.mark.usefixtures("many_machines")
@pytest.mark.parametrize("seed", range(40 if SOAK else 1))
def test_every_prefix_of_the_requests_restores_and_goes_on(seed: int) -> None:
    day = _Day(seed)
    done = day.memory.done
    memory = Memory()
    for requests, one in enumerate(done, 1):
        memory.do(one)
        if requests < day.answers[0][0]:
            continue  # it is being made
        place = MemoryPlace(MemoryBucket(memory))
        with place.open_reader() as reader:
            position = reader.standing.position
            assert position in day.allowed(requests)
            if requests % 5 == 0:
                reader.check()
        if requests % 9 == 0:
            copied = Memory(Done(*item) for item in memory.objects.items())
            beside = MemoryPlace(MemoryBucket(copied))
            with beside.open_writer() as writer:
                writer.add_change(Change(position.version + 1, image("goes on"), None))
            with beside.open_reader() as reader:
                reader.check()
                assert reader.standing.position.changes == position.changes + 1
    assert len(done) > 100


@pytest.mark.usefixtures("many_machines")
def test_backup_whose_creation_was_cut_is_none_and_can_be_made_again() -> None:
    memory = Memory()
    with MemoryPlace(MemoryBucket(memory)).creating(Change(1, image("first"), None)):
        pass
    for cut in range(len(memory.done)):
        place = MemoryPlace(MemoryBucket(Memory(memory.done[:cut])))
        with pytest.raises(NotFound):
            place.open_reader()
        with place.creating(), place.open_reader() as reader:
            assert reader.version == 0


class _Delaying(MemoryBucket):
    """A client whose next object without parts is on its way when it gives up."""

    def put_new(self, key: str, content: bytes) -> bool:
        if "/" in key:
            return super().put_new(key, content)
        self.memory.delayed.append(Done(key, content))
        raise Unreachable("no answer")


def test_large_object_that_gets_its_name_late_is_whole() -> None:
    """A new base whose parts were removed meanwhile would be the end of the backup."""
    memory = Memory()
    objects = RemoteObjects(_Delaying(memory))
    made = objects.prepare("compaction", [b"content"])
    with pytest.raises(Unreachable):
        objects.publish(made, "base-2", op="publish")
    other = RemoteObjects(MemoryBucket(memory))
    other.discard(made)
    other.remove_abandoned(0.0)
    memory.do(memory.delayed.pop())
    assert other.get("base-2", 0, 99) == b"content"
    other.remove_abandoned(1.0)
    assert other.get("base-2", 0, 99) == b"content"


def test_large_object_that_never_gets_its_name_is_removed_later() -> None:
    memory = Memory()
    objects = RemoteObjects(_Delaying(memory))
    made = objects.prepare("compaction", [b"content"])
    with pytest.raises(Unreachable):
        objects.publish(made, "base-2", op="publish")
    RemoteObjects(MemoryBucket(memory)).remove_abandoned(1.0)  # stored at 0
    assert not memory.objects
