"""Starts one process of a node after the other, as a service manager does after a crash."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from simulator.calls import read_recording, runs
from simulator.crash import CrashPoint
from simulator.node import Node
from simulator.settings import Exit

if TYPE_CHECKING:
    from types import FrameType

    from simulator.options import Command
    from simulator.settings import Settings


ENDS_OF_A_PLUGIN = (Exit.PLUGIN, Exit.REFUSED, Exit.PLUGIN_IN_HOOK)
"""How a node ends whose plugin was killed: important, guarded by another process, or neither."""


class Supervisor:
    """Runs the processes a command line asks for; `run` does it all, once."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._child: int | None = None
        self._started = 0

    def run(self) -> int:
        """Start processes until one ends of itself; returns the exit code of the last."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        recording = self._command.settings.recording
        if self._command.recorded and recording is not None:
            code = self._run_recorded(recording)
        else:
            code = self._run_planned()
        self._join_reports()
        return code

    def _run_recorded(self, recording: str) -> int:
        """Do what each recorded process did: its calls, and the crash that ended it."""
        settings = self._command.settings
        recorded = runs(read_recording(recording))
        code = 0
        for run in recorded:
            points: tuple[CrashPoint, ...] = ()
            if run.crash_point is not None:
                points = (CrashPoint(run.first + run.count - 1, run.crash_point),)
            code = self._run_one(
                replace(
                    settings,
                    first=run.first,
                    count=run.count,
                    crash_points=points,
                    hold=settings.hold and run is recorded[-1],
                )
            )
            if code != (-signal.SIGKILL if points else Exit.DONE):
                break
        return code

    def _run_planned(self) -> int:
        """Continue from the database's version after each planned end of a process."""
        points = self._command.settings.crash_points
        while True:
            past_crash = _past_first(points, kills_node=True)
            taken = points[: past_crash or len(points)]
            past_plugin = _past_first(taken, kills_node=False)
            code = self._run_one(replace(self._command.settings, crash_points=taken))
            if code == -signal.SIGKILL and past_crash:
                points = points[past_crash:]
            elif code in ENDS_OF_A_PLUGIN and past_plugin:
                points = points[past_plugin:]
            else:
                return code

    def _numbered(self, settings: Settings) -> Settings:
        again = self._started > 0 and settings.variant is not None
        report = settings.report
        return replace(
            settings,
            variant=f"{settings.variant}_{self._started}" if again else None,
            report=None if report is None else f"{report}.{self._started}",
        )

    def _run_one(self, settings: Settings) -> int:
        settings = self._numbered(settings)
        self._started += 1
        sys.stdout.flush()
        sys.stderr.flush()
        self._child = os.fork()
        if self._child == 0:
            _be_node(settings)
        _, status = os.waitpid(self._child, 0)
        self._child = None
        return os.waitstatus_to_exitcode(status)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        if self._child is not None:
            os.kill(self._child, number)

    def _join_reports(self) -> None:
        path = self._command.settings.report
        if path is None:
            return
        processes = []
        for number in range(self._started):
            part = f"{path}.{number}"
            if os.path.exists(part):
                with open(part, encoding="utf-8") as file:
                    processes.append(json.load(file))
                os.unlink(part)
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"processes": processes}, file, indent=2)
            file.write("\n")


def _be_node(settings: Settings) -> NoReturn:
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        code = Node(settings).run()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _past_first(points: tuple[CrashPoint, ...], *, kills_node: bool) -> int:
    """Return the place after the first point that kills the node, or the plugin; 0 for none."""
    places = (place for place, point in enumerate(points, 1) if point.kills_node == kills_node)
    return next(places, 0)
