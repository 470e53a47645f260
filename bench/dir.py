"""`python -m bench.dir`: answer time, size and speed of `dir:`, beside the floor and `file:`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from bench import drive, measures

_DATA = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "data")
_LARGE_BYTES = 400_000_000


def capture() -> str:
    captures = os.environ.get("CLN_BACKUP_CAPTURES")
    if captures is None:
        return os.path.join(_DATA, "captures", "small", "router.jsonl.xz")
    return os.path.join(captures, "payments600", "payee.jsonl.xz")


def new_encrypted(directory: str) -> None:
    os.makedirs(directory, exist_ok=True)
    command = [drive.CLI, "init", "--encrypt", "--lightning-dir", directory, f"{directory}/backup"]
    subprocess.run(command, check=True, capture_output=True)


def answer_times(directory: str) -> None:
    """Each call goes to the floor and to every plugin in turn, so that all see the same disk."""
    floor = measures.build_floor(directory)
    programs = {"floor": drive.Program([floor, os.path.join(directory, "floor")], directory)}
    homes = {name: os.path.join(directory, name) for name in ("file", "dir", "dir-encrypted")}
    drive.new_backup(homes["file"])
    drive.new_backup(homes["dir"], url="dir://{}/backup")
    new_encrypted(homes["dir-encrypted"])
    for name, home in homes.items():
        programs[name] = drive.Program([drive.PLUGIN], home)
    times: dict[str, list[float]] = {name: [] for name in programs}
    sql_bytes = 0
    names = list(programs)
    for number, call in enumerate(drive.calls(capture())):
        request = drive.request(number, call["data_version"], call["writes"])
        sql_bytes += sum(len(text.encode()) for text in call["writes"])
        for turn in range(len(names)):
            name = names[(number + turn) % len(names)]
            times[name].append(programs[name].answer_time_s(request))
    for program in programs.values():
        program.close()
    least = sorted(times["floor"])[len(times["floor"]) // 2]
    for name, taken in times.items():
        taken.sort()
        p50, p99 = taken[len(taken) // 2], taken[len(taken) * 99 // 100]
        print(
            f"{name:<16} p50 {p50 * 1e6:6.0f} µs ({p50 / least:.2f}× the floor)   "
            f"p99 {p99 * 1e6:6.0f} µs"
        )
    for name, home in homes.items():
        url = os.path.join(home, "backup")
        key = ["--key-file", os.path.join(home, "backup.key")] if name[-1] == "d" else []
        said = subprocess.run(
            [drive.CLI, "status", "--json", *key, url], check=True, capture_output=True, text=True
        )
        size = int(said.stdout.split('"backupsize": ')[1].split(",")[0])
        print(f"{name:<16} {size} bytes, {sql_bytes / size:.1f}× smaller than the SQL")
        for round_number in range(2):
            target = os.path.join(directory, f"restored-{name}-{round_number}")
            started = time.perf_counter()
            subprocess.run(
                [drive.CLI, "restore", *key, url, target], check=True, capture_output=True
            )
            print(f"{name:<16} restore {time.perf_counter() - started:.2f} s")


def first_answers(directory: str) -> None:
    call = next(drive.calls(capture()))
    request = drive.request(1, call["data_version"], call["writes"])
    for kind in ("dir", "dir-encrypted"):
        taken = []
        for number in range(15):
            home = os.path.join(directory, f"first-{kind}-{number}")
            if kind == "dir":
                drive.new_backup(home, url="dir://{}/backup")
            else:
                new_encrypted(home)
            plugin = drive.Program([drive.PLUGIN], home)
            plugin.answer_time_s(request)
            taken.append(time.perf_counter() - plugin.started)
            plugin.close()
        print(f"{kind:<16} first answer, median of 15: {sorted(taken)[7] * 1e3:.0f} ms")


def checksums(directory: str) -> None:
    """Verifies a large backup by its checksums alone: many segments, and a large snapshot."""
    from cln_backup.backends import create_backend, open_backend
    from cln_backup.change import Change

    class Noise:
        size_bytes = _LARGE_BYTES

        def chunks(self):  # type: ignore[no-untyped-def]  # noqa: ANN202
            for _ in range(_LARGE_BYTES // 1_000_000):
                yield os.urandom(1_000_000)

    for kind in ("plain", "encrypted"):
        place = os.path.join(directory, f"large-{kind}")
        query = ""
        if kind == "encrypted":
            with open(f"{place}.key", "wb") as file:
                file.write(os.urandom(32))
            query = f"?key-file={place}.key"
        create_backend(f"dir://{place}{query}", Change(0, Noise(), None))
        with open_backend(f"dir://{place}{query}") as backend:
            started = time.perf_counter()
            backend.read_through()
            taken = time.perf_counter() - started
            print(
                f"{kind:<16} checksums of a snapshot: {backend.size_bytes / taken / 1e6:.0f} MB/s"
            )


def main() -> None:
    with tempfile.TemporaryDirectory(
        prefix="bench-", dir=sys.argv[1] if sys.argv[1:] else None
    ) as directory:
        first_answers(directory)
        checksums(directory)
        answer_times(directory)


if __name__ == "__main__":
    main()
