"""The writer's side of a compaction: a second process works, the writer swaps at the end."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from cln_backup.backends.contract import Staged, size_of
from cln_backup.model.errors import StorageError

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
        self._said = b""
        self._done = False
        backend.discard()
        arguments = [backend.url, scratch_dir or "", "if-it-pays" if if_it_pays else "always"]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cln_backup.compaction.process", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
        except OSError as error:
            raise StorageError(f"Cannot start a compaction: {error}") from error

    def fileno(self) -> int:
        """Becomes readable when `step` has something to do."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def step(self) -> Statistics | None:
        """Takes what the second process says; returns the statistics when all is done.

        When it returns them, the compacted backup is on stable storage in the old one's place; or
        the old one was left there, and they say what it `would_be`.

        Raises:
            BackupError: the compaction is over; the backup is as before.
        """
        data = os.read(self.fileno(), 1 << 16)
        self._said += data
        if not data:
            raise StorageError(
                "The process that compacts has ended unexpectedly; the backup is as before."
            )
        if not self._said.endswith(b"\n"):
            return None
        message, self._said = json.loads(self._said), b""
        if "error" in message:
            raise StorageError(message["error"])
        if "compacted" in message:
            self._done = True
            done: Statistics = message["compacted"]
            return done
        if "would_be" in message:
            self._done = True
            now = size_of(self._backend)
            return {"before": now, "after": now, "would_be": message["would_be"]}
        if message["staged"] is not None:
            staged = Staged(**message["staged"])
            if self._backend.size_bytes - staged.copied_bytes > _SWAP_BYTES:
                self._request(b"more\n")
                return None
            self._backend.replace(staged)
        self._done = True
        return {"before": self._before, "after": size_of(self._backend)}

    def _request(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
        except BrokenPipeError:
            raise StorageError(
                "The process that compacts has ended unexpectedly; the backup is as before."
            ) from None

    def close(self) -> None:
        """Ends the second process; what it was building is removed, now or by itself.

        After a compaction it still gives back the old file's room, which takes it some time.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._done:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(b"done\n")
        else:
            self._process.terminate()
        self._process.stdin.close()
        self._process.stdout.close()
        with contextlib.suppress(StorageError):  # a leftover is removed at the next opportunity
            self._backend.discard()

    def wait(self) -> None:
        """After `close`: waits until the second process is gone, for whom nobody else does."""
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
