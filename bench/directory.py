"""Measures of `dir:`: the node's wait, the size, the restore, and a check of checksums alone."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from bench import drive
from bench.measures import Row, build_floor
from cln_backup.backends import create_backend, open_reader
from cln_backup.model.change import Change
from simulator.load import Load, generate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    _Load = Callable[[], Iterator[tuple[int, list[str]]]]

_GENERATED = 4_000
_LARGE_BYTES = 400_000_000
_PIECE_BYTES = 1_000_000
_TO_REACH = {"dir:": ("≤ 1.0×", "≤ 150 ms"), "dir:, encrypted": ("≤ 1.1×", "≤ 150 ms")}


def new_home(home: str, kind: str) -> list[str]:
    """Sets a backup up; returns what a command needs to open it."""
    os.makedirs(home)
    place = os.path.join(home, "backup")
    command = [drive.CLI, "init", "--lightning-dir", home, place]
    key = []
    if kind == "dir:, encrypted":
        command.append("--encrypt")
        key = ["--key-file", f"{place}.key"]
    elif kind == "file:":
        command[-1] = place = f"file://{place}"
    subprocess.run(command, check=True, capture_output=True)
    return [*key, place]


def _p50(times_s: list[float]) -> float:
    return sorted(times_s)[len(times_s) // 2]


def _recorded(capture: str) -> Iterator[tuple[int, list[str]]]:
    for call in drive.calls(capture):
        yield call["data_version"], call["writes"]


def _generated() -> Iterator[tuple[int, list[str]]]:
    for call in generate(Load(count=_GENERATED)):
        yield call.data_version, list(call.writes)


def dir_answer_time(directory: str, capture: str) -> Iterator[Row]:
    """The node's wait, call by call in turn with the floor; then what the backup came to."""
    floor_program = build_floor(directory)
    numbers = itertools.count()
    name = os.path.basename(capture).partition(".")[0]
    loads: dict[str, _Load] = {
        name: partial(_recorded, capture),
        "generated": _generated,
    }
    for load, kind in itertools.product(loads, _TO_REACH):
        number = str(next(numbers))
        home = os.path.join(directory, number)
        opened_by = new_home(home, kind)
        floor = drive.Program([floor_program, os.path.join(directory, f"floor{number}")], directory)
        plugin = drive.Program([drive.PLUGIN], home)
        floor_s, plugin_s, sql_bytes = _in_turn(floor, plugin, loads[load]())
        ours, least = _p50(plugin_s), _p50(floor_s)
        yield Row(f"db_write p50, {load}: floor", f"{least * 1e6:.0f} µs")
        yield Row(f"db_write p50, {load}: {kind}", f"{ours * 1e6:.0f} µs")
        yield Row(
            f"db_write p50, {load}: {kind} / floor", f"{ours / least:.2f}×", _TO_REACH[kind][0]
        )
        size = _status(opened_by)["backupsize"]
        yield Row(f"SQL / backup, {load}: {kind}", f"{sql_bytes / size:.1f}×")


def _in_turn(
    floor: drive.Program, plugin: drive.Program, calls: Iterable[tuple[int, list[str]]]
) -> tuple[list[float], list[float], int]:
    """Both programs' answer times, and the bytes of SQL."""
    times_s: tuple[list[float], list[float]] = ([], [])
    sql_bytes = 0
    for number, (version, writes) in enumerate(calls):
        request = drive.request(number, version, writes)
        sql_bytes += sum(len(text.encode("utf-8", "surrogateescape")) for text in writes)
        for turn in (number % 2, 1 - number % 2):
            times_s[turn].append((floor, plugin)[turn].answer_time_s(request))
    floor.close()
    plugin.close()
    return (*times_s, sql_bytes)


def _status(opened_by: list[str]) -> dict[str, Any]:
    said = subprocess.run(
        [drive.CLI, "status", "--json", *opened_by], check=True, capture_output=True
    )
    status: dict[str, Any] = json.loads(said.stdout)
    return status


def dir_first_answer(directory: str, capture: str) -> Iterator[Row]:
    """From the start of the plugin's process to its first answer."""
    version, writes = next(_recorded(capture))
    request = drive.request(1, version, writes)
    for kind, (_, to_reach) in _TO_REACH.items():
        times_s = []
        for number in range(15):
            home = os.path.join(directory, f"{kind[-3:]}{number}")
            new_home(home, kind)
            plugin = drive.Program([drive.PLUGIN], home)
            plugin.answer_time_s(request)
            times_s.append(time.perf_counter() - plugin.started)
            plugin.close()
        yield Row(f"first answer, median of 15: {kind}", f"{_p50(times_s) * 1e3:.0f} ms", to_reach)


def _name(capture: str) -> str:
    return "/".join(capture.split("/")[-2:]).partition(".")[0]


def dir_size_and_restore(directory: str, capture: str) -> Iterator[Row]:
    """The whole command `restore`, in turn with the same from `file:`; sizes of both streams."""
    router = os.path.join(os.path.dirname(os.path.dirname(capture)), "small", "router.jsonl.xz")
    kinds = ("file:", *_TO_REACH)
    streams: list[tuple[str, _Load, str]] = [
        (_name(capture), partial(_recorded, capture), "≥ 6×"),
        (_name(router), partial(_recorded, router), "≥ 10×"),
        ("generated", _generated, ""),
    ]
    for stream, load, least in streams:
        opened_by, sizes = {}, {}
        for kind in kinds:
            home = os.path.join(directory, f"{stream.replace('/', '-')}-{kinds.index(kind)}")
            opened_by[kind] = new_home(home, kind)
            plugin = drive.Program([drive.PLUGIN], home)
            sizes[kind] = 0
            for number, (version, writes) in enumerate(load()):
                plugin.answer_time_s(drive.request(number, version, writes))
                sizes[kind] += sum(len(text.encode("utf-8", "surrogateescape")) for text in writes)
            plugin.close()
        for kind in kinds:
            ratio = sizes[kind] / _status(opened_by[kind])["backupsize"]
            to_reach = least if kind != "file:" else ""
            yield Row(f"SQL / backup, {stream}: {kind}", f"{ratio:.1f}×", to_reach)
        times_s: dict[str, list[float]] = {kind: [] for kind in kinds}
        for turn in range(5):
            for kind in kinds:
                target = os.path.join(directory, f"restored-{turn}-{kinds.index(kind)}")
                started = time.perf_counter()
                command = [drive.CLI, "restore", *opened_by[kind], target]
                subprocess.run(command, check=True, capture_output=True)
                times_s[kind].append(time.perf_counter() - started)
                os.unlink(target)
        for kind in kinds:
            ratio = _p50(times_s["file:"]) / _p50(times_s[kind])
            yield Row(f"restore, {stream}: {kind}", f"{_p50(times_s[kind]):.2f} s")
            if kind != "file:":
                yield Row(f"speed of restore, {stream}: {kind} / file:", f"{ratio:.2f}×", "≥ 1×")


class _Noise:
    size_bytes = _LARGE_BYTES

    def chunks(self) -> Iterator[bytes]:
        for _ in range(_LARGE_BYTES // _PIECE_BYTES):
            yield os.urandom(_PIECE_BYTES)


def dir_checksums(directory: str, _capture: str) -> Iterator[Row]:
    """Reads a backup of 400 MB through and checks its checksums, and nothing else."""
    for kind in _TO_REACH:
        url = os.path.join(directory, f"large{len(kind)}")
        if kind == "dir:, encrypted":
            with open(f"{url}.key", "wb") as file:
                file.write(os.urandom(32))
            url += f"?key-file={url}.key"
        create_backend(f"dir://{url}", Change(0, _Noise(), None))
        with open_reader(f"dir://{url}") as backend:
            started = time.perf_counter()
            backend.check()
            rate = backend.size_bytes / (time.perf_counter() - started)
        yield Row(f"check of checksums: {kind}", f"{rate / 1e6:.0f} MB/s", "≥ 500 MB/s")


ALL = (dir_answer_time, dir_first_answer, dir_size_and_restore, dir_checksums)
