"""The writer's side of a compaction: a second process works, the writer swaps at the end."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cln_backup.backends.contract import size_of
from cln_backup.compaction.messages import Compacted, More, NotWorthIt, Ready, Start
from cln_backup.model.errors import StorageError
from cln_backup.process.child import Child

if TYPE_CHECKING:
    from cln_backup.backends.contract import Backend, Statistics

_END_S = 60.0
_SWAP_BYTES = 1 << 16
"""How much may be left to copy when the writer swaps: about what a large change has."""


class Compactor:
    """One compaction that is under way; to be polled by its `fileno`."""

    def __init__(
        self, backend: Backend, scratch_dir: str | None = None, *, if_it_pays: bool = False
    ) -> None:
        """Starts the second process, which works in `scratch_dir` if that is given.

        With `if_it_pays`, the backup is left as it is where a compaction is not worth it.

        Raises:
            StorageError: it cannot be started, or a leftover cannot be removed.
        """
        self._backend = backend
        self._before = size_of(backend)
        self._done = False
        backend.discard()
        self._child = Child[Ready | Compacted | NotWorthIt](
            "cln_backup.compaction.process",
            Start(backend.url, scratch_dir, if_it_pays),
            (Ready, Compacted, NotWorthIt),
            work="compacts",
        )

    @property
    def pid(self) -> int:
        """The second process."""
        return self._child.pid

    def fileno(self) -> int:
        """Becomes readable when `step` has something to do."""
        return self._child.fileno()

    def step(self) -> Statistics | None:
        """Takes what the second process says; returns the statistics when all is done.

        When it returns them, the compacted backup is on stable storage in the old one's place; or
        the old one was left there, and they say what it `would_be`.

        Raises:
            BackupError: the compaction is over; the backup is as before.
        """
        said = self._child.step()
        if said is None:
            return None
        if isinstance(said, Ready) and said.staged is not None:
            if self._backend.size_bytes - said.staged.copied_bytes > _SWAP_BYTES:
                self._child.send(More())
                return None
            self._backend.replace(said.staged)
        self._done = True
        if isinstance(said, Compacted):
            return said.statistics
        after = size_of(self._backend)
        if isinstance(said, NotWorthIt):
            return {"before": after, "after": after, "would_be": said.would_be}
        return {"before": self._before, "after": after}

    def close(self) -> None:
        """Ends the second process; what it was building is removed, now or by itself.

        After a compaction it still gives back the old file's room, which takes it some time.
        """
        if self._done:
            self._child.release()
        else:
            self._child.close()
        with contextlib.suppress(StorageError):  # a leftover is removed at the next opportunity
            self._backend.discard()

    def wait(self) -> None:
        """After `close`: waits until the second process is gone, for whom nobody else does."""
        self._child.wait(_END_S)
