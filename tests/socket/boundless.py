"""A backend without a limit of its own, to show what the wire carries: each change is a file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cln_backup.backends.contract import Backend
from cln_backup.model.change import Change, Head
from cln_backup.model.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.contract import Staged

_PIECE_BYTES = 1 << 20


class CountedSnapshot:
    """A snapshot of any size that is made while it is read; no two pieces are the same."""

    def __init__(self, size_bytes: int, piece_bytes: int = _PIECE_BYTES) -> None:
        self.size_bytes = size_bytes
        self._piece_bytes = piece_bytes

    def chunks(self) -> Iterator[bytes]:
        for start in range(0, self.size_bytes, self._piece_bytes):
            length = min(self._piece_bytes, self.size_bytes - start)
            yield (start.to_bytes(8, "big") * (length // 8 + 1))[:length]


class _Stored:
    def __init__(self, path: str) -> None:
        self._path = path
        self.size_bytes = os.path.getsize(path)

    def chunks(self) -> Iterator[bytes]:
        with open(self._path, "rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece


class BoundlessBackend(Backend):
    """`boundless:DIRECTORY`; holds snapshots, one a file that is named for its version."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.notices = []
        self._directory = url.partition(":")[2]
        self._look()

    def _look(self) -> None:
        names = os.listdir(self._directory)
        self._versions = sorted(int(name) for name in names if name.isdigit())
        self.version = self._versions[-1] if self._versions else 0
        self.prev_version = self._versions[-2] if len(self._versions) > 1 else 0
        self.version_count = len(self._versions)

    @classmethod
    def create(cls, url: str, base: Change | None) -> None:
        os.makedirs(url.partition(":")[2])
        if base is not None:
            cls(url).add_change(base)

    @classmethod
    def open(cls, url: str, *, writable: bool) -> BoundlessBackend:  # noqa: ARG003
        if not os.path.isdir(url.partition(":")[2]):
            raise NotFound(f"There is no {url}.")
        return cls(url)

    @property
    def head(self) -> Head | None:
        if not self._versions:
            return None
        return Head(self.version, Change(self.version, self._stored(self.version), None).kind, True)

    @property
    def size_bytes(self) -> int:
        return sum(self._stored(version).size_bytes for version in self._versions)

    @property
    def last_change_at(self) -> float | None:
        return None

    @property
    def scratch_dir(self) -> str:
        return self._directory

    def _stored(self, version: int) -> _Stored:
        return _Stored(os.path.join(self._directory, str(version)))

    def claim(self, node_id: str) -> None:
        pass

    def add_change(self, change: Change) -> None:
        assert change.snapshot is not None
        path = os.path.join(self._directory, str(change.version))
        with open(path + ".part", "wb") as file:
            file.writelines(change.snapshot.chunks())
        os.rename(path + ".part", path)
        self._look()

    def rewind(self) -> None:
        os.remove(os.path.join(self._directory, str(self.version)))
        self._look()

    def stream_changes(self, start: int = 0, *, head: bool = True) -> Iterator[Change]:
        for version in self._versions if head else self._versions[:-1]:
            if version >= start:
                yield Change(version, self._stored(version), None)

    def stage(self, base: Change | None, *, foreign_keys: bool) -> Staged:
        raise NotImplementedError

    def stage_more(self, staged: Staged) -> Staged:
        raise NotImplementedError

    def replace(self, staged: Staged) -> None:
        raise NotImplementedError

    def discard(self) -> None:
        pass

    def close(self) -> None:
        pass
