"""A node's long run with compaction by itself: space, memory and wait stay flat."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, NamedTuple

from bench import drive
from bench.measures import Row, quantile_us, ratio
from cln_backup.backends.inventory import space_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHANGES = 60_000
_SLICES = 10
_ROWS = 1_000
_LOOK_EVERY = 500


class _Seen(NamedTuple):
    """What a slice of the run has shown.

    Attributes:
        answers_s: the times of its answers.
        space_bytes: the most that the backup used.
        memory_bytes: the most that each of the plugin's processes used, by its module.
    """

    answers_s: list[float]
    space_bytes: int
    memory_bytes: dict[str, int]


def long_run(directory: str, _capture: str) -> Iterator[Row]:
    """200,000 changes, as fast as they are answered."""
    for kind in ("dir", "file"):
        yield from _run(os.path.join(directory, kind), kind)


def _run(directory: str, kind: str) -> Iterator[Row]:
    home = os.path.join(directory, "node")
    drive.new_backup(home, url=f"{kind}://{directory}/backup")
    plugin = drive.Program([drive.PLUGIN], home)
    chance = random.Random(1)  # noqa: S311 - a load, no secret
    for number, writes in enumerate(_start(), 1):
        plugin.answer_time_s(drive.request(number, number, writes))
    plugin.init(home)
    seen = []
    version = len(_start())
    compactions = 0
    for _ in range(_SLICES):
        answers_s: list[float] = []
        most, memory = 0, dict[str, int]()
        for count in range(_CHANGES // _SLICES):
            version += 1
            request = drive.request(version, version, _change(version, chance))
            answers_s.append(plugin.answer_time_s(request))
            compactions += plugin.said.count(b"Compaction finished")
            if count % _LOOK_EVERY == 0:
                most = max(most, space_bytes([f"{directory}/backup"]))
                _look_at_memory(plugin.pid, memory)
        seen.append(_Seen(answers_s, most, memory))
    status = plugin.ask("backup-status")
    plugin.close()
    yield from _rows(kind, seen, compactions, status["space_bound_bytes"])


def _rows(kind: str, seen: list[_Seen], compactions: int, bound: int) -> Iterator[Row]:
    name = f"{_CHANGES:,} changes, {kind}:"
    first, last = seen[0], seen[-1]
    yield Row(f"{name} compactions by itself", str(compactions))
    most = max(each.space_bytes for each in seen)
    yield Row(f"{name} most space / bound", f"{_mb(most)} / {_mb(bound)} MB", "≤ 1×")
    for share, text in ((0.5, "p50"), (0.99, "p99")):
        begin, end = (quantile_us(each.answers_s, share) for each in (first, last))
        yield Row(f"{name} {text}, first tenth", f"{begin} µs")
        yield Row(f"{name} {text}, last tenth / first", ratio(end / begin), "1×")
    for module in sorted(last.memory_bytes):
        begin = first.memory_bytes.get(module, 0)
        end = last.memory_bytes[module]
        to_reach = "≤ 40 MB" if "follower" in module else ""
        text = f"{_mb(begin)} → {_mb(end)} MB"
        yield Row(f"{name} memory of {module}", text, to_reach)


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f}"


def _start() -> list[list[str]]:
    return [
        [
            "CREATE TABLE vars (name TEXT PRIMARY KEY, val TEXT, intval INTEGER)",
            "INSERT INTO vars (name, intval) VALUES ('data_version', 0)",
            "CREATE TABLE states (id INTEGER PRIMARY KEY, state BLOB)",
            *(f"INSERT INTO states VALUES ({row}, x'00')" for row in range(_ROWS)),
            _bump(1),
        ]
    ]


def _change(version: int, chance: random.Random) -> list[str]:
    """A channel's state is replaced by another one, as with each payment."""
    row, state = chance.randrange(_ROWS), chance.randbytes(500).hex()
    return [f"UPDATE states SET state = x'{state}' WHERE id = {row}", _bump(version)]


def _bump(version: int) -> str:
    return (
        "UPDATE vars SET intval = intval + 1 WHERE name = 'data_version' "
        f"AND intval = {version - 1}"
    )


def _look_at_memory(worker: int, most: dict[str, int]) -> None:
    for pid in (worker, *drive.children(worker)):
        try:
            with open(f"/proc/{pid}/status", encoding="ascii") as file:
                fields = dict(line.split(":", 1) for line in file)
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                module = file.read().split(b"\0")[-2].decode().rpartition("/")[2]
        except (OSError, IndexError):  # it has ended
            continue
        if pid != worker and module == "cln-backup":
            module = "guard"
        used = int(fields.get("VmRSS", "0 kB").split()[0]) * 1024
        most[module] = max(most.get(module, 0), used)


ALL = (long_run,)
