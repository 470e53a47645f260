"""Writers on several machines, with lost, late and repeated requests: never two are answered."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends.objects.log_objects import LogObjects
from cln_backup.backends.objects.merging import merge
from cln_backup.backends.objects.upkeep import remove_expired
from cln_backup.model.change import Change
from cln_backup.model.errors import StorageError, Unreachable, WriterConflict
from tests.histories import image, payment, prepared
from tests.objects.memory import Memory, MemoryBucket, MemoryPlace, many_machines, position_of
from tests.soak import SOAK

if TYPE_CHECKING:
    from cln_backup.backends.contract import Writer

__all__ = ["many_machines"]

_STEPS = 300
_SEEDS = range(200 if SOAK else 3)


class _Machine:
    """A writer, and the history that its node knows."""

    def __init__(self, writer: Writer, history: list[Change]) -> None:
        self.writer = writer
        self.history = history


class _World:
    """A store, the machines that use it, and what any node was ever answered."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.memory = Memory()
        self.machines: list[_Machine] = []
        self.answered: list[Change] = []
        self.known: dict[tuple[object, ...], list[Change]] = {position_of([]): []}
        self.texts = 0
        with MemoryPlace(MemoryBucket(self.memory)).creating():
            pass

    def place(self, loses: float = 0.0) -> MemoryPlace:
        return MemoryPlace(MemoryBucket(self.memory, self.chance, loses))

    def step(self) -> None:
        does = self.chance.choices(
            (self.open, self.add, self.drop, self.compact, self.merge, self.expire, self.arrive),
            (3, 30, 4, 1, 3, 1, 2),
        )[0]
        try:
            does()
        except (StorageError, WriterConflict):
            return

    def open(self) -> None:
        writer = self.place(0.04).open_writer()
        history = list(self.known[writer.standing.position])
        self.machines.append(_Machine(writer, history))
        if len(self.machines) > 3:  # one is killed
            self.machines.pop(self.chance.randrange(3))

    def add(self) -> None:
        if not self.machines:
            return
        machine = self.chance.choice(self.machines)
        self.texts += 1
        version = machine.history[-1].version + 1 if machine.history else 1
        change = payment(version, f"of a writer {self.texts}")
        if not machine.history:
            change = Change(1, image("first"), None)
        self.expect([*machine.history, change])
        try:
            machine.writer.add_change(change)
        except BaseException:
            self.machines.remove(machine)
            raise
        self.hear(machine, [*machine.history, change])

    def drop(self) -> None:
        droppable = [machine for machine in self.machines if machine.writer.standing.droppable]
        if not droppable:
            return
        machine = self.chance.choice(droppable)
        self.expect(machine.history[:-1])
        try:
            machine.writer.rewind()
        except BaseException as error:
            self.machines.remove(machine)
            if isinstance(error, Unreachable) and self.is_current(machine):
                self.answered = machine.history[:-1][: len(self.answered)]  # perhaps dropped
            raise
        self.hear(machine, machine.history[:-1], dropped=1)

    def expect(self, history: list[Change]) -> None:
        """A history that the store may have from now on."""
        self.known[position_of(history)] = history

    def hear(self, machine: _Machine, history: list[Change], dropped: int = 0) -> None:
        """A node was answered: its history is the store's, and has all that was answered."""
        before = machine.history
        assert self.is_current(machine), "two nodes were answered"
        assert history[: len(before) - dropped] == before[: len(before) - dropped]
        machine.history = self.answered = history
        self.expect(history)
        self.look()

    def is_current(self, machine: _Machine) -> bool:
        """Whether a node has all that was answered."""
        return machine.history[: len(self.answered)] == self.answered

    def look(self) -> None:
        with self.place().open_reader() as reader:
            position = reader.standing.position
            assert position == position_of(self.answered)
            if self.chance.random() < 0.05:
                reader.check()
                assert sum(1 for _ in reader.stream_changes()) == reader.standing.version_count

    def compact(self) -> None:
        if not self.machines:
            return
        machine = self.chance.choice(self.machines)
        with self.place(0.01).open_reader() as reader:
            if reader.standing.version_count < 5:
                return
            base = Change(reader.version - 1, image(f"folded {self.texts}"), None)
            ticket = prepared(reader, base, foreign_keys=True)
        machine.writer.take_over(ticket)

    def merge(self) -> None:
        objects = LogObjects(self.place(0.02).bucket(1.0))
        merge(objects, unmerged=self.chance.randrange(4), least=self.chance.randrange(1, 9))

    def expire(self) -> None:
        remove_expired(LogObjects(self.place(0.02).bucket(1.0)), 0, 0, grace_s=-1.0)

    def arrive(self) -> None:
        if self.memory.delayed:
            delayed = self.memory.delayed
            self.memory.do(delayed.pop(self.chance.randrange(len(delayed))))


@pytest.mark.usefixtures("many_machines")
@pytest.mark.parametrize("seed", _SEEDS)
def test_no_two_nodes_are_answered_and_nothing_answered_is_lost(seed: int) -> None:
    world = _World(seed)
    for _ in range(_STEPS):
        world.step()
    assert len(world.answered) > 20
    with world.place().open_reader() as reader:
        history = world.known[reader.standing.position]
    assert history[: len(world.answered)] == world.answered
