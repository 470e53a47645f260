"""Decides about alarms: each finding is told once when it gets worse, and once when it is over."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.model.errors import StorageError
from cln_backup.model.health import Finding, Level
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_log = logging.getLogger(__name__)

STORE_NAME: Final = "backup.alarms"
_MAX_BYTES: Final = 1 << 20
_HOLD_S: Final = {Level.BAD: 0.0, Level.WARNING: 120.0, Level.GOOD: 60.0}
"""How long a finding has to stay at a new level before it is told: what comes and goes is not."""


class Notice(NamedTuple):
    """One change for the better or the worse.

    Attributes:
        node: the node's name on a server; empty beside a node.
        finding: as it is now; at the level GOOD, as it was.
        was: the level that was told before.
        at: seconds since 1970.
    """

    node: str
    finding: Finding
    was: Level
    at: float


class Alarms:
    """Decides what to tell; remembers what was told, also over a restart."""

    def __init__(self, directory: str) -> None:
        """`directory` has what an earlier process told; a file that is not valid is ignored."""
        self._path = os.path.join(directory, STORE_NAME)
        self._told: dict[tuple[str, str], Finding] = dict(_read(self._path))
        self._changing: dict[tuple[str, str], tuple[Level, float]] = {}

    def take(
        self, findings: Mapping[str, Iterable[Finding]], now: float, clock_s: float
    ) -> list[Notice]:
        """The notices to tell now, and only now. If that cannot be stored, a restart repeats them.

        Args:
            findings: of all nodes, by name.
            now: seconds since 1970.
            clock_s: seconds of a clock that is never set back.
        """
        current = {
            (node, finding.code): finding
            for node, found in findings.items()
            for finding in found
            if finding.level is not Level.GOOD
        }
        notices = []
        for key in {**self._told, **current, **self._changing}:
            before = self._told.get(key)
            was = Level.GOOD if before is None else before.level
            found = current.get(key)
            level = Level.GOOD if found is None else found.level
            if level is was:
                self._changing.pop(key, None)
                continue
            changing = self._changing.get(key)
            if changing is None or changing[0] is not level:
                changing = self._changing[key] = level, clock_s
            if clock_s - changing[1] < _HOLD_S[level]:
                continue
            del self._changing[key]
            if found is None:
                assert before is not None
                found = before._replace(level=Level.GOOD, remedy="")
                del self._told[key]
            else:
                self._told[key] = found
            notices.append(Notice(key[0], found, was, now))
        if notices:
            self._write()
        return notices

    def _write(self) -> None:
        told = [[node, *finding] for (node, _), finding in self._told.items()]
        try:
            fsio.write_file(self._path, json.dumps(told).encode() + b"\n", op="write backup.alarms")
        except StorageError as error:
            _log.warning("%s", error)


def _read(path: str) -> list[tuple[tuple[str, str], Finding]]:
    with contextlib.suppress(StorageError, ValueError, TypeError, RecursionError):
        if fsio.kind_at(path, op="read backup.alarms") is None:
            return []
        fd = fsio.open_existing(path, writable=False, op="read backup.alarms")
        try:
            told = json.loads(fsio.read_at(fd, _MAX_BYTES, 0, op="read backup.alarms"))
        finally:
            os.close(fd)
        return [
            ((str(node), str(code)), Finding(str(code), Level(level), str(text), str(remedy)))
            for node, code, level, text, remedy in told
        ]
    return []
