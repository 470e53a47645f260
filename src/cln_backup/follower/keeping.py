"""Keeps the node's small files beside its backup, while the node runs."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import BackupError, Interrupted
from cln_backup.model.node_files import NETWORK
from cln_backup.node.small_files import EMERGENCY, candidates, signature
from cln_backup.operations.node_files import keep

if TYPE_CHECKING:
    from cln_backup.backends.contract import Reader
    from cln_backup.follower.messages import NodeDirectory
    from cln_backup.replay.beside import Run

LOOK_S: Final = 60.0
"""How often the names, sizes and times of the files are read."""

OFTEN_S: Final = 600.0
"""How long a change of `emergency.recover` alone waits: it changes with each revocation."""

_OFTEN: Final = f"{NETWORK}/{EMERGENCY}"

_log = logging.getLogger(__name__)


class NodeFilesKeeper:
    """Stores a new set when the files have changed; call `look` often.

    Attributes:
        state: when the newest set was stored, and what keeps a newer one from being stored.
    """

    def __init__(self, node: NodeDirectory, run: Run) -> None:
        """Reads nothing yet; `run` does what must not be done at the lowest priority."""
        self._node = node
        self._run = run
        self._look_at = 0.0
        self._stored_at = -OFTEN_S
        self._known: dict[str, tuple[int, ...]] | None = None
        self._said: set[str] = set()
        self.state: tuple[float | None, str | None] = (None, None)

    def look(self, reader: Reader) -> None:
        """Stores the files if that is due. Errors become trouble. Raises `Interrupted`."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        kept = reader.kept_files
        if kept is None or not self._node.wanted.in_backup(is_encrypted=kept.is_encrypted):
            self._look_at = float("inf")
            return
        try:
            found = signature(candidates(self._node.path, self._node.wanted))
            if not self._is_due(found, now):
                return
            stored = []
            self._run(lambda: stored.append(keep(kept, self._node.path, self._node.wanted)))
            if stored[0].is_new:
                self._stored_at = now
            self._known = found
            self.state = (kept.taken_at(), None)
            self._say_once(stored[0].notices)
        except Interrupted:
            raise
        except (BackupError, OSError) as error:
            self._say_once((f"The node's files cannot be kept in the backup now: {error}",))
            self.state = (self.state[0], str(error))

    def _is_due(self, found: dict[str, tuple[int, ...]], now: float) -> bool:
        known = self._known
        if known is None or self.state[1] is not None:
            return True
        changed = {name for name in found.keys() | known if found.get(name) != known.get(name)}
        return bool(changed - {_OFTEN}) or (bool(changed) and now - self._stored_at >= OFTEN_S)

    def _say_once(self, notices: tuple[str, ...]) -> None:
        for notice in notices:
            if notice not in self._said:
                self._said.add(notice)
                _log.warning("%s", notice)
