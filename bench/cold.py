"""The wait as a node feels it: with cold caches, and beside bursty work on every core.

Between two changes lightningd, channeld and hsmd run, so a node never finds the plugin's code and
data in the processor's caches. Calls in quick succession, which do, show a shorter wait.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from bench import drive
from bench.directory import new_home
from bench.measures import Row, build_floor
from bench.socket import running_server
from cln_backup.backends import create_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WALK_BYTES = 24 << 20
_BURST_BYTES = 4 << 20
_BURST_MS = 0.5, 3.0
_BURST_PAUSE_MS = 1.0, 4.0
_NODE_PAUSE_S = 0.001
_WARM_UP = 200  # without the start of the process, and with a segment begun
_ROUNDS = 15
_ROUND_CALLS = 80
_FLOOR = "floor"
_TO_REACH = {"dir:": "≤ 1.2×", "dir:, encrypted": "≤ 1.25×"}


class _Way(NamedTuple):
    """A program that answers `db_write`, and all the processes that work for it."""

    program: drive.Program
    pids: tuple[int, ...]

    def processor_time_s(self) -> float:
        return sum(drive.processor_time_s(pid) for pid in self.pids)


class _Figures(NamedTuple):
    """The waits of each round, and the processor time of one change."""

    rounds_s: list[list[float]]
    processor_s: float

    def p50_s(self) -> float:
        return median(itertools.chain.from_iterable(self.rounds_s))

    def ratio(self, floor: _Figures) -> float:
        """The median over the rounds, each of which has its own load of the machine."""
        pairs = zip(self.rounds_s, floor.rounds_s, strict=True)
        return median(median(ours) / median(least) for ours, least in pairs)


def cold(directory: str, capture: str) -> Iterator[Row]:
    """Each change after a walk through 24 MB of memory, which takes the caches."""
    memory = bytearray(WALK_BYTES)
    yield from _compared("cold", directory, capture, lambda: memory.count(1))


def cold_bursts(directory: str, capture: str) -> Iterator[Row]:
    """Each change after a short pause, beside a process on each core that works in bursts."""
    with contextlib.ExitStack() as stack:
        for cpu in sorted(os.sched_getaffinity(0)):
            command = [sys.executable, "-m", "bench.cold", str(cpu)]
            burst = stack.enter_context(subprocess.Popen(command, cwd=drive.ROOT))
            stack.callback(burst.kill)
        yield from _compared("bursts", directory, capture, lambda: time.sleep(_NODE_PAUSE_S))


def _compared(
    name: str, directory: str, capture: str, between: Callable[[], object]
) -> Iterator[Row]:
    with contextlib.ExitStack() as stack:
        figures = _in_turn(_ways(stack, directory), capture, between)
    floor = figures[_FLOOR]
    for way, found in figures.items():
        yield Row(f"{name}, p50: {way}", f"{found.p50_s() * 1e6:.0f} µs")
        if way != _FLOOR:
            ratio = f"{found.ratio(floor):.2f}×"
            yield Row(f"{name}, p50 / floor: {way}", ratio, _TO_REACH.get(way, ""))
        yield Row(f"{name}, processor time: {way}", f"{found.processor_s * 1e6:.0f} µs")


def _ways(stack: contextlib.ExitStack, directory: str) -> dict[str, _Way]:
    ways = {}

    def start(name: str, command: list[str], home: str, *besides: int) -> None:
        program = drive.Program(command, home)
        stack.callback(program.close)
        ways[name] = _Way(program, (program.pid, *besides))

    start(_FLOOR, [build_floor(directory), os.path.join(directory, "floor")], directory)
    for number, kind in enumerate(("file:", "dir:", "dir:, encrypted")):
        home = os.path.join(directory, str(number))
        new_home(home, kind)
        start(kind, [drive.PLUGIN], home)
    served = f"dir://{directory}/served"
    create_backend(served, None)
    server = stack.enter_context(running_server(served))
    home = os.path.join(directory, "client")
    drive.new_backup(home, url=f"socket:127.0.0.1:{server.port}")
    start("socket:, with its server", [drive.PLUGIN], home, server.pid)
    return ways


def _in_turn(
    ways: dict[str, _Way], capture: str, between: Callable[[], object]
) -> dict[str, _Figures]:
    """Each call goes to every program before the next one, in an order that changes."""
    calls = enumerate(drive.calls(capture))
    for number, call in itertools.islice(calls, _WARM_UP):
        request = drive.request(number, call["data_version"], call["writes"])
        for way in ways.values():
            way.program.answer_time_s(request)
    began_s = {name: way.processor_time_s() for name, way in ways.items()}
    rounds_s: dict[str, list[list[float]]] = defaultdict(list)
    names = list(ways)
    count = 0
    while len(batch := list(itertools.islice(calls, _ROUND_CALLS))) == _ROUND_CALLS:
        for name in names:
            rounds_s[name].append([])
        for number, call in batch:
            request = drive.request(number, call["data_version"], call["writes"])
            names.append(names.pop(0))
            for name in names:
                between()
                rounds_s[name][-1].append(ways[name].program.answer_time_s(request))
        count += len(batch)
        if count == _ROUNDS * _ROUND_CALLS:
            break
    return {
        name: _Figures(rounds_s[name], (way.processor_time_s() - began_s[name]) / count)
        for name, way in ways.items()
    }


def _work_in_bursts(cpu: int) -> None:
    """Plays the other programs of a node's machine, until it is killed."""
    os.sched_setaffinity(0, {cpu})
    chance = random.Random(cpu)  # noqa: S311
    memory = bytearray(_BURST_BYTES)
    while True:
        ends_at = time.perf_counter() + chance.uniform(*_BURST_MS) / 1e3
        while time.perf_counter() < ends_at:
            memory.count(1)
        time.sleep(chance.uniform(*_BURST_PAUSE_MS) / 1e3)


ALL = (cold, cold_bursts)

if __name__ == "__main__":
    _work_in_bursts(int(sys.argv[1]))
