"""The activities of a backup when the disaster comes: each is cut at every one of its steps."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.model.change import Change
from tests.disasters.places import NAME, make, url_in
from tests.histories import (
    ON,
    SnapshotBytes,
    build_database,
    first,
    long_text,
    payment,
    payments,
    prepared,
    rider,
    started_node,
    take_over,
)
from tests.seed_file import SeedNode, packed

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class State:
    """The possible contents of a backup.

    Attributes:
        history: its changes.
        drops_to: what a rewind must come to, as the head is in doubt; `None` where that is open.
        may_drop: `False` where a rewind must be refused, as the head was dropped already.
    """

    history: list[Change]
    drops_to: list[Change] | None = None
    may_drop: bool = True


Answered = Callable[[State], None]
"""To be called when a state was answered: from then on, it or a later one must be found."""


@dataclass(frozen=True)
class Scenario:
    """One thing that a backend does.

    Attributes:
        prepare: makes the files in an empty directory.
        before: their contents; `None` if there is no backup yet.
        act: does it, and says what was answered.
    """

    name: str
    prepare: Callable[[Path], None]
    before: State | None
    act: Callable[[Path, Answered], None]


@dataclass(frozen=True)
class Scenarios:
    """Makes scenarios for a kind of backup."""

    kind: str

    def _url(self, directory: Path) -> str:
        return url_in(directory, self.kind)

    def appends(
        self, name: str, history: Sequence[Change], change: Change, *, rewound: Change | None = None
    ) -> Scenario:
        """Appends a change; with `rewound`, right after that one was dropped."""
        before = list(history)

        def prepare(directory: Path) -> None:
            make(directory, [*history, *([rewound] if rewound else [])], self.kind)
            if rewound:
                with open_writer(self._url(directory)) as backend:
                    backend.rewind()

        def act(directory: Path, answered: Answered) -> None:
            with open_writer(self._url(directory)) as backend:
                backend.add_change(change)
                answered(State([*before, change], drops_to=before))

        return Scenario(name, prepare, State(before, may_drop=rewound is None), act)

    def appends_some(
        self, name: str, history: Sequence[Change], changes: Sequence[Change]
    ) -> Scenario:
        """Appends one change after the other."""

        def prepare(directory: Path) -> None:
            make(directory, history, self.kind)

        def act(directory: Path, answered: Answered) -> None:
            now = list(history)
            with open_writer(self._url(directory)) as backend:
                for change in changes:
                    backend.add_change(change)
                    answered(State([*now, change], drops_to=now))
                    now = [*now, change]

        return Scenario(name, prepare, State(list(history), drops_to=list(history[:-1])), act)

    def rewinds(self, name: str, history: Sequence[Change]) -> Scenario:
        after = list(history[:-1])

        def act(directory: Path, answered: Answered) -> None:
            with open_writer(self._url(directory)) as backend:
                backend.rewind()
                answered(State(after, may_drop=False))

        def prepare(directory: Path) -> None:
            make(directory, history, self.kind)

        return Scenario(name, prepare, State(list(history), drops_to=after), act)

    def creates(self, name: str, base: Change | None) -> Scenario:
        def act(directory: Path, answered: Answered) -> None:
            create_backend(self._url(directory), base)
            answered(State([], may_drop=False) if base is None else State([base], drops_to=[]))

        return Scenario(name, lambda _: None, None, act)

    def compacts(
        self,
        name: str,
        history: Sequence[Change],
        base: Change | None,
        meanwhile: Sequence[Change] = (),
        *,
        foreign_keys: bool = True,
    ) -> Scenario:
        """Folds all before the head into `base`; the writer appends `meanwhile` before it swaps."""
        folded: list[Change] = []
        if base is not None:
            folded = [base] if foreign_keys else [base, rider(base.version)]

        def act(directory: Path, answered: Answered) -> None:
            with open_writer(self._url(directory)) as writer:
                with open_reader(self._url(directory)) as reader:
                    staged = prepared(reader, base, foreign_keys=foreign_keys)
                    now = list(history)
                    for number, change in enumerate(meanwhile):
                        if 2 * number >= len(meanwhile):
                            staged = reader.prepare_more(staged)
                        writer.add_change(change)
                        answered(State([*now, change], drops_to=now))
                        now = [*now, change]
                    take_over(writer, staged)
                compacted = [*folded, history[-1], *meanwhile]
                answered(State(compacted, drops_to=compacted[:-1]))

        def prepare(directory: Path) -> None:
            make(directory, history, self.kind)

        return Scenario(name, prepare, State(list(history), drops_to=list(history[:-1])), act)

    def repairs(self, name: str, crash: Callable[[SeedNode], None]) -> Scenario:
        """Opens a file for writing that the community's plugin left after a crash."""
        committed: list[Change] = []

        def prepare(directory: Path) -> None:
            node = SeedNode(directory / NAME, started_node())
            crash(node)
            committed[:] = node.committed

        def act(directory: Path, answered: Answered) -> None:
            open_writer(self._url(directory)).close()
            answered(State(committed))

        return Scenario(name, prepare, State(committed), act)

    def mends(
        self, name: str, history: Sequence[Change], torn: bytes, promised: Change | None
    ) -> Scenario:
        """Opens a file for writing whose last change was cut; `promised`: its header is there."""

        def prepare(directory: Path) -> None:
            path = directory / NAME
            make(directory, [*history, *([promised] if promised else [])], self.kind)
            header = path.read_bytes()[:512]
            path.unlink()
            make(directory, history, self.kind)
            path.write_bytes(header + path.read_bytes()[512:] + torn)

        def act(directory: Path, answered: Answered) -> None:
            open_writer(self._url(directory)).close()
            answered(State(list(history), may_drop=False))

        return Scenario(name, prepare, State(list(history), may_drop=False), act)


def _one_crash(node: SeedNode) -> None:
    node.commits(*payments(4, 6))
    node.crashes_after_the_answer(payment(6, "never committed"))
    node.commits(payment(6, long_text(6, 700)), *payments(7, 9))


def base_of(history: Sequence[Change]) -> Change:
    """A snapshot of the database after these changes; its bytes are the same in every process."""
    with tempfile.TemporaryDirectory() as directory:
        path = build_database(Path(directory) / "base.sqlite3", history)
        return Change(history[-1].version, SnapshotBytes(path.read_bytes(), 16_384), None)


def all_scenarios(kind: str = "file") -> dict[str, Scenario]:
    """Every scenario of a kind of backup by its name."""
    of = Scenarios(kind)
    node = [*started_node(), *payments(4, 6)]
    in_migration = [*started_node()[:2], started_node()[2]]
    migrated = [*node, rider(5, ON)]
    base, newer = base_of(node), base_of([*node, *payments(6, 10)])
    found = [
        of.appends("the first change of all", [], first()),
        of.appends("a transaction", node, payment(6)),
        of.appends("a transaction of some sectors", node, payment(6, long_text(6, 1_900))),
        of.appends("a transaction of many sectors", node, payment(6, long_text(6, 21_000))),
        of.appends("a transaction after a rider", started_node()[:2], started_node()[2]),
        of.appends("a transaction after a snapshot", [base], payment(6)),
        of.appends_some("some transactions of one writer", node, payments(6, 9)),
        of.appends("a rider", node, rider(5)),
        of.appends("a rider after a rider", [*node, rider(5)], rider(5, ON)),
        of.appends("a snapshot", node, newer),
        of.appends("a first snapshot", [], base),
        of.appends("what replaces a dropped head", node, payment(6), rewound=payment(6, "stale")),
        of.appends(
            "what replaces a longer dropped head",
            node,
            payment(6),
            rewound=payment(6, long_text(6, 3_000)),
        ),
        of.appends("a rider in the place of a dropped head", node, rider(5), rewound=payment(6)),
        of.appends("what replaces a dropped first change", [], first(), rewound=first()),
        of.rewinds("drops a transaction", node),
        of.rewinds("drops a transaction of many sectors", [*node, payment(6, long_text(6, 9_000))]),
        of.rewinds("drops a rider", [*node, rider(5)]),
        of.rewinds("drops the first change of all", [first()]),
        of.rewinds("drops what follows a snapshot", [base, payment(6)]),
        of.creates("creates an empty backup", None),
        of.creates("creates a backup with a snapshot", base),
        of.compacts("compacts", node, base_of(node[:-1])),
        of.compacts("compacts while changes come", node, base_of(node[:-1]), payments(6, 10)),
        of.compacts("compacts up to a rider", migrated, base_of(node), payments(6, 8)),
        of.compacts("compacts up to a snapshot", [*node, base], None, payments(6, 8)),
        of.compacts(
            "compacts with foreign keys off",
            in_migration,
            base_of(in_migration[:1]),
            foreign_keys=False,
        ),
    ]
    if kind == "file":
        found += [
            of.repairs("repairs after one crash", _one_crash),
            of.mends("mends a torn end", node, packed(payment(6, long_text(6, 900)))[:700], None),
            of.mends("mends a torn rider", node, packed(rider(5))[:20], None),
            of.mends("mends a torn snapshot", node, packed(base)[:9_000], None),
            of.mends("mends a header without its change", node, b"", payment(6)),
            of.mends(
                "mends a header with half of its change",
                node,
                packed(payment(6, long_text(6, 900)))[:300] + bytes(750),
                payment(6, long_text(6, 900)),
            ),
        ]
    return {scenario.name: scenario for scenario in found}


def next_change(history: Sequence[Change]) -> Change:
    """A change that continues from there."""
    version = history[-1].version if history else 0
    return first() if version == 0 else payment(version + 1, "and on")
