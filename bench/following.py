"""What the follower costs: the node's waits with it and without it, and its processor time."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from bench import drive
from bench.measures import Row, quantile_us, ratio

if TYPE_CHECKING:
    from collections.abc import Iterator

_RATE_PER_S: Final = 25
"""As the recorded router's node, while it forwards payments."""

_WARM_CALLS: Final = 50
_DATA: Final = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests")
_ROUTER: Final = os.path.join(_DATA, "data", "captures", "small", "router.jsonl.xz")


def following(directory: str, _capture: str) -> Iterator[Row]:
    """The recorded router, call by call in turn to a plugin with a follower and to one without."""
    recorded = list(drive.calls(_ROUTER))
    for scheme in ("dir", "file"):
        plugins = []
        for name, value in (("with", "on"), ("without", "off")):
            home = os.path.join(directory, f"{scheme}-{name}")
            drive.new_backup(home, url=scheme + "://{}/backup")
            plugins.append(drive.Program([drive.PLUGIN], home))
            for number, call in enumerate(recorded[:_WARM_CALLS]):
                plugins[-1].answer_time_s(_request(number, call))
            plugins[-1].init(home, {"backup-follower": value})
        follower = _follower(plugins[0].pid)
        times_s: tuple[list[float], ...] = ([], [])
        began_s, used_s, lags_s = time.monotonic(), drive.processor_time_s(follower), []
        for number, call in enumerate(recorded[_WARM_CALLS:]):
            time.sleep(max(0.0, began_s + number / _RATE_PER_S - time.monotonic()))
            turns = list(zip(plugins, times_s, strict=True))
            for plugin, times in turns if number % 2 else reversed(turns):
                times.append(plugin.answer_time_s(_request(number + _WARM_CALLS, call)))
            if number % _RATE_PER_S == 0:
                states = [plugin.ask("backup-status") for plugin in plugins]
                lags_s.append(states[0]["proof_lag_s"])
        share = (drive.processor_time_s(follower) - used_s) / (time.monotonic() - began_s)
        for name, part in (("p50", 0.5), ("p99", 0.99)):
            there, absent = (quantile_us(times, part) for times in times_s)
            yield Row(f"{scheme}: db_write {name}: with a follower", f"{there} µs")
            yield Row(f"{scheme}: db_write {name}: without", f"{absent} µs")
            yield Row(f"{scheme}: db_write {name}: with / without", ratio(there / absent), "≤ 1.1×")
        yield Row(f"{scheme}: follower's processor time at 25 /s", f"{share:.1%}", "≤ 5%")
        yield Row(f"{scheme}: follower's longest lag", f"{max(lags_s):.1f} s", "≤ 10 s")
        yield Row(f"{scheme}: follower's peak memory", f"{_peak_mb(follower):.0f} MB", "≤ 40 MB")
        for plugin in plugins:
            plugin.close()


def _request(number: int, call: dict[str, object]) -> bytes:
    version, writes = call["data_version"], call["writes"]
    assert isinstance(version, int)
    assert isinstance(writes, list)
    return drive.request(number, version, writes)


def _follower(plugin: int) -> int:
    """The follower's process id, once it follows."""
    while True:
        for child in drive.children(plugin):
            with open(f"/proc/{child}/cmdline", "rb") as file:
                if b"cln_backup.follower.process" in file.read():
                    return child
        time.sleep(0.01)


def _peak_mb(process: int) -> float:
    with open(f"/proc/{process}/status", encoding="ascii") as file:
        return int(file.read().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


ALL = (following,)
