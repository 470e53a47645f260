"""The writer's side of a compaction: a child process works, the writer swaps at the end."""

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
"""How much may be left to copy when the writer swaps: about the size of a large change."""


class Compactor:
    """One running compaction; poll its `fileno`."""

    def __init__(
        self, backend: Backend, scratch_dir: str | None = None, *, if_it_pays: bool = False
    ) -> None:
        """Starts the child process, which works in `scratch_dir` if given.

        With `if_it_pays`, the backup is not changed if a compaction is not worth it.

        Raises:
            StorageError: it cannot be started, or leftovers cannot be removed.
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
        """The child's process id."""
        return self._child.pid

    def fileno(self) -> int:
        """Becomes readable when `step` has something to do."""
        return self._child.fileno()

    def step(self) -> Statistics | None:
        """Handles a message of the child process; returns the statistics at the end.

        When it returns them, the compacted backup is on stable storage and has replaced the old
        one; or the old one was kept, and they say what it `would_be`.

        Raises:
            BackupError: the compaction has failed; the backup is unchanged.
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
        """Ends the child process; its unfinished files are removed, now or by itself.

        After a compaction it still frees the old file's space, which takes some time.
        """
        if self._done:
            self._child.release()
        else:
            self._child.close()
        with contextlib.suppress(StorageError):  # leftovers are removed at the next opportunity
            self._backend.discard()

    def wait(self) -> None:
        """After `close`: waits until the child process has ended, and reaps it."""
        self._child.wait(_END_S)
