"""Measures of the way to a server: the wait on loopback, far away, and in a crowd."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from bench import drive
from bench.measures import Row, build_floor
from cln_backup.backends import create_backend, open_writer
from cln_backup.backends.socket.token_file import create_token
from cln_backup.model.change import Change

if TYPE_CHECKING:
    from collections.abc import Iterator

_DELAY_MS = 20
_CALLS = 3_000
_NODES = 200
_PROCESSES = 4
_CHANGES = 40
_CHANGE_BYTES = 4_600


class Server(NamedTuple):
    """A server that runs."""

    pid: int
    port: int


@contextlib.contextmanager
def running_server(*arguments: str) -> Iterator[Server]:
    process = subprocess.Popen(
        [drive.CLI, "server", *arguments, "127.0.0.1:0", "--log-level", "info"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        found = re.search(r"Waiting for connection on .*:(\d+)", line)
        if found is not None:
            break
    else:
        raise AssertionError("the server did not start")
    threading.Thread(target=process.stdout.read, daemon=True).start()
    try:
        yield Server(process.pid, int(found[1]))
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def _delay(port: int, delay_ms: float) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.delay", str(port), str(delay_ms)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


def _us(times_s: list[float], share: float) -> int:
    return round(sorted(times_s)[int((len(times_s) - 1) * share)] * 1e6)


def socket_answer_time(directory: str, capture: str) -> Iterator[Row]:
    """How long the node waits, call by call in turn: floor, loopback, and 20 ms away."""
    floor = drive.Program([build_floor(directory), os.path.join(directory, "floor")], directory)
    with contextlib.ExitStack() as stack:
        plugins = []
        for name, delay_ms in (("near", 0), ("far", _DELAY_MS)):
            home = os.path.join(directory, name)
            os.mkdir(home)
            backup = f"file://{home}/server.bkp"
            create_backend(backup, None)
            port = stack.enter_context(running_server(backup)).port
            if delay_ms:
                port = stack.enter_context(_delay(port, delay_ms / 2))
            drive.new_backup(home, url=f"socket:127.0.0.1:{port}")
            plugins.append(drive.Program([drive.PLUGIN], home))
        times_s: list[list[float]] = [[], [], []]
        for number, call in enumerate(drive.calls(capture)):
            if number == _CALLS:
                break
            request = drive.request(number, call["data_version"], call["writes"])
            for program, times in zip((floor, *plugins), times_s, strict=True):
                times.append(program.answer_time_s(request))
        for program in (floor, *plugins):
            program.close()
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        least, near, far = (_us(times, share) for times in times_s)
        yield Row(f"db_write {name}: floor beside it", f"{least} µs")
        yield Row(f"db_write {name}: plugin, socket: on loopback", f"{near} µs")
        yield Row(f"db_write {name}: plugin, socket:, {_DELAY_MS} ms away", f"{far} µs")
        if name == "p50":
            trips = (far - near) / (_DELAY_MS * 1e3)
            yield Row("round trips a change", f"{trips:.2f}", "≤ 1.1")


def socket_crowd(directory: str, capture: str) -> Iterator[Row]:  # noqa: ARG001 - as the others
    """200 nodes that write at once, each as fast as it is answered."""
    names = [f"n{number}" for number in range(_NODES)]
    lines = []
    for name in names:
        create_backend(f"file://{directory}/{name}.bkp", None)
        shown = create_token(f"{directory}/{name}.token")
        lines.append(f"{name} file://{directory}/{name}.bkp {shown}\n")
    with open(f"{directory}/nodes", "w", encoding="ascii") as file:
        file.writelines(lines)
    with running_server("--nodes", f"{directory}/nodes") as server:
        urls = [
            f"socket:127.0.0.1:{server.port}?node={n}&token-file={directory}/{n}.token"
            for n in names
        ]
        children = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.socket", *urls[start::_PROCESSES]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
            )
            for start in range(_PROCESSES)
        ]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        started = time.perf_counter()
        for child in children:
            assert child.stdin is not None
            child.stdin.close()
        times_s: list[float] = []
        for child in children:
            assert child.stdout is not None
            times_s += json.loads(child.stdout.readline())
        took_s = time.perf_counter() - started
        with open(f"/proc/{server.pid}/status", encoding="ascii") as status:
            peak = re.search(r"VmHWM:\s+(\d+) kB", status.read())
        for child in children:
            child.wait()
    yield Row(f"{_NODES} nodes at once: changes a second", f"{len(times_s) / took_s:.0f}")
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        yield Row(f"{_NODES} nodes at once: {name}", f"{_us(times_s, share) / 1e3:.1f} ms")
    yield Row(
        f"{_NODES} nodes at once: server's memory", f"{int(peak[1]) / 1e3:.0f} MB" if peak else ""
    )


def _crowd(urls: list[str]) -> None:
    """A part of the crowd: one thread a node, begun together when the input ends."""
    backends = [open_writer(url) for url in urls]
    print("ready", flush=True)
    sys.stdin.read()
    times_s: list[float] = []

    def write(index: int) -> None:
        for version in range(1, _CHANGES + 1):
            statements = [
                f"INSERT INTO payments VALUES ({version}, '{'x' * _CHANGE_BYTES}')",
                (
                    "UPDATE vars SET intval = intval + 1 WHERE name = 'data_version' "
                    f"AND intval = {version - 1}"
                ),
            ]
            started = time.perf_counter()
            backends[index].add_change(Change(version, None, statements))
            times_s.append(time.perf_counter() - started)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(len(urls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(times_s), flush=True)


ALL = (socket_answer_time, socket_crowd)

if __name__ == "__main__":
    _crowd(sys.argv[1:])
