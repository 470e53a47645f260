"""The settings of a node, and how its process ends."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from typing import TYPE_CHECKING

from simulator.calls import all_calls, committed_calls, read_recording
from simulator.load import Load, generate
from simulator.source import after_version, from_index, until_version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from simulator.calls import Call
    from simulator.crash import CrashPoint


class Exit(IntEnum):
    """Exit codes. Where lightningd has one of its own it is the same; it aborts in the others."""

    DONE = 0
    PLUGIN = 1
    """An important plugin ended, or a plugin could not be started."""
    USAGE = 2
    PID_FILE = 11
    """Another node holds the pid file."""
    REFUSED = 40
    """The plugin answered a call with something else than `continue`."""
    PLUGIN_IN_HOOK = 41
    """The plugin ended, or had to be killed, while the node waited for its answer."""
    DATABASE = 42
    """The database refused a call."""
    SOURCE = 43
    """The calls do not continue from the database's version."""
    NOT_REACHED = 44
    """A commit ended without passing its crash point."""


class FatalError(Exception):
    """The node stops at once, as lightningd's `fatal`: nothing is committed or closed.

    Args:
        code: how the process ends.
        message: what is printed.
    """

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """The plugin and how it is treated.

    Attributes:
        command: the program and its arguments.
        name: how the log calls it.
        important: `important-plugin` instead of `plugin`.
        options: values for options it adds to the node, a list for each.
        before_init: how many calls a process makes before it sends `init`.
        during_init: how many it makes between `init` and its answer.
        timeout_s: how long it may take to answer `getmanifest`, and then `init`; lightningd's
            PLUGIN_STARTUP_TIMEOUT.
    """

    command: tuple[str, ...]
    name: str
    important: bool = False
    options: dict[str, list[str]] = field(default_factory=dict)
    before_init: int = 10
    during_init: int = 0
    timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class ShutdownSettings:
    """How the node stops.

    Attributes:
        timeout_s: how long a plugin that subscribed to `shutdown` may live on.
        late_calls: how many calls it still gets in that time; another process plays the
            plugin that makes the node write them, and ends after them.
        late_interval_s: the time between them.
        storm: a seed: calls continue while the plugin leaves, at moments derived from it; `None`
            for no such calls.
        after_plugin: how many calls follow that no plugin sees.
        on_sigterm: whether SIGTERM and SIGINT stop the node cleanly; lightningd has no handler
            for them and dies.
    """

    timeout_s: float = 30.0
    late_calls: int = 0
    late_interval_s: float = 0.1
    storm: int | None = None
    after_plugin: int = 0
    on_sigterm: bool = True


@dataclass(frozen=True, slots=True)
class Settings:
    """One process of a node; all paths are absolute.

    Attributes:
        directory: the network directory.
        recording: the calls, if they are recorded.
        load: the calls, if they are generated.
        before: a database to begin with when there is none.
        first: begin at this call, whatever the database says; recorded calls that were never
            committed are then among those made.
        count: make no more calls than this.
        until: make no call of a later version.
        riders: see `simulator.source.after_version`.
        variant: make the first transaction of this process differ from the recorded one.
        rate: calls a second; 0 is as fast as possible.
        hold: stay when the calls are made.
        crash_points: for calls of this process, in order.
    """

    directory: str
    network: str
    wallet: str
    pid_file: str | None
    log_file: str | None
    quiet: bool = False
    plugin: PluginSettings | None = None
    shutdown: ShutdownSettings = field(default_factory=ShutdownSettings)
    recording: str | None = None
    load: Load | None = None
    before: str | None = None
    first: int | None = None
    count: int | None = None
    until: int | None = None
    riders: str = "needed"
    variant: str | None = None
    wal: bool = False
    synchronous: str = "full"
    rate: float = 0.0
    hold: bool = False
    manifest_only: bool = False
    crash_points: tuple[CrashPoint, ...] = ()
    report: str | None = None

    def calls_from(self, data_version: int) -> Iterator[Call]:
        """Yield the calls of this process for a database at a version.

        Raises:
            SourceError: the calls do not continue from there.
            OSError: the recording cannot be read.
            ValueError: it is none.
        """
        if self.load is not None:
            calls: Iterator[Call] = generate(self.load)
        elif self.recording is None:
            return iter(())
        elif self.first is None:
            calls = committed_calls(read_recording(self.recording))
        else:
            calls = all_calls(read_recording(self.recording))
        if self.first is None:
            calls = after_version(calls, data_version, self.riders)
        else:
            calls = from_index(calls, self.first)
        if self.until is not None:
            calls = until_version(calls, self.until)
        return islice(calls, self.count)


def default_pid_file(directory: str, network: str) -> str:
    """Return where lightningd puts its pid file: beside the network directory."""
    return os.path.join(os.path.dirname(directory), f"lightningd-{network}.pid")
