"""The measurements of one process of the node and how it ended, as a JSON file."""

from __future__ import annotations

import json
import time
from array import array
from dataclasses import dataclass, field


@dataclass(slots=True)
class Report:
    """Counts and times, filled in while the node runs.

    Attributes:
        answer_ns: for each answered call the time from the first byte of the request written to
            the answer parsed.
        committed: transactions committed.
        unprotected_commits: those that the plugin was to see and did not, because it was gone,
            or has no such hook. Commits after the shutdown's wait are not among them.
        late_calls: calls made after the shutdown began.
        after_plugin_commits: transactions committed when the shutdown had taken leave of the
            plugin.
        spawn_to_manifest_us: from the plugin's start to its answer to `getmanifest`.
        spawn_to_first_db_write_us: from the plugin's start to its first answered call.
        init_us: from `init` sent to its answer.
        plugin_exit_s: from `shutdown` sent to the end of the plugin's stdout.
        exit_reason: how the process ended, in words.
    """

    answer_ns: array[int] = field(default_factory=lambda: array("q"))
    committed: int = 0
    unprotected_commits: int = 0
    late_calls: int = 0
    after_plugin_commits: int = 0
    spawn_to_manifest_us: float | None = None
    spawn_to_first_db_write_us: float | None = None
    init_us: float | None = None
    plugin_exit_s: float | None = None
    data_version: int = 0
    next_call: int = 0
    exit_code: int | None = None
    exit_reason: str = "running"
    started_ns: int = field(default_factory=time.perf_counter_ns)

    def as_dict(self) -> dict[str, object]:
        """Summarise; times are in the units their names say."""
        sorted_ns = sorted(self.answer_ns)
        return {
            "answered": len(sorted_ns),
            "committed": self.committed,
            "unprotected_commits": self.unprotected_commits,
            "late_calls": self.late_calls,
            "after_plugin_commits": self.after_plugin_commits,
            "data_version": self.data_version,
            "next_call": self.next_call,
            "p50_us": _quantile_us(sorted_ns, 0.50),
            "p99_us": _quantile_us(sorted_ns, 0.99),
            "max_us": _quantile_us(sorted_ns, 1.00),
            "mean_us": sum(sorted_ns) / len(sorted_ns) / 1000 if sorted_ns else None,
            "in_hook_s": sum(sorted_ns) / 1e9,
            "wall_s": (time.perf_counter_ns() - self.started_ns) / 1e9,
            "spawn_to_manifest_us": self.spawn_to_manifest_us,
            "spawn_to_first_db_write_us": self.spawn_to_first_db_write_us,
            "init_us": self.init_us,
            "plugin_exit_s": self.plugin_exit_s,
            "exit_code": self.exit_code,
            "exit_reason": self.exit_reason,
        }

    def write(self, path: str) -> None:
        """Write the summary as JSON. Raises `OSError`."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.as_dict(), file, indent=2)
            file.write("\n")


def _quantile_us(sorted_ns: list[int], fraction: float) -> float | None:
    """Return the smallest time that this fraction of all calls did not exceed, in µs."""
    if not sorted_ns:
        return None
    rank = max(1, -int(-fraction * len(sorted_ns) // 1))
    return sorted_ns[rank - 1] / 1000
