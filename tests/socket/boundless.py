"""A backend without a limit of its own, to show what the wire carries: each change is a file."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from cln_backup.backends.contract import LastChange, Reader, Standing, Writer
from cln_backup.backends.place import Place
from cln_backup.model.change import Change, Head, Kind
from cln_backup.model.errors import NotFound
from cln_backup.model.position import Position

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.ticket import MoreNeeded, Statistics, Ticket

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


class BoundlessPlace(Place):
    """`boundless:DIRECTORY`; holds snapshots, one a file that is named for its version."""

    @property
    def storage_dir(self) -> str:
        return self.url.partition(":")[2]

    @contextlib.contextmanager
    def creating(self, base: Change | None = None, **_options: object) -> Iterator[Place]:
        os.makedirs(self.storage_dir)
        if base is not None:
            _Open(self).add_change(base)
        yield self

    def open_reader(self, **_options: object) -> Reader:
        return self._opened()

    def _open_writer(self, *_options: object) -> Writer:
        return self._opened()

    def _opened(self) -> _Open:
        if not os.path.isdir(self.storage_dir):
            raise NotFound(f"There is no {self.url}.")
        return _Open(self)


class _Open(Reader, Writer):
    def __init__(self, place: BoundlessPlace) -> None:
        self.place: BoundlessPlace = place
        self._look()

    def _look(self) -> None:
        names = os.listdir(self.place.storage_dir)
        self._versions = sorted(int(name) for name in names if name.isdigit())

    @property
    def standing(self) -> Standing:
        prev, version = [0, 0, *self._versions][-2:]
        head = Head(version, Kind.SNAPSHOT, True) if self._versions else None
        count = len(self._versions)
        return Standing(Position(version, count, None), count, prev, head, bool(head), 0)

    @property
    def size_bytes(self) -> int:
        return sum(self._stored(version).size_bytes for version in self._versions)

    @property
    def last_change(self) -> LastChange:
        return LastChange(None, by_file=False)

    def _stored(self, version: int) -> _Stored:
        return _Stored(os.path.join(self.place.storage_dir, str(version)))

    def claim(self, node_id: str, timeout_s: float | None = None) -> None:
        pass

    def store_change(self, change: Change, timeout_s: float | None = None) -> None:  # noqa: ARG002
        assert change.snapshot is not None
        path = os.path.join(self.place.storage_dir, str(change.version))
        with open(path + ".part", "wb") as file:
            file.writelines(change.snapshot.chunks())
        os.rename(path + ".part", path)
        self._look()

    def rewind(self, timeout_s: float | None = None) -> None:  # noqa: ARG002
        os.remove(os.path.join(self.place.storage_dir, str(self.version)))
        self._look()

    def stream_changes(
        self,
        start: int = 0,
        *,
        after: Position | None = None,  # noqa: ARG002
        head: bool = True,
    ) -> Iterator[Change]:
        for version in self._versions if head else self._versions[:-1]:
            if version >= start:
                yield Change(version, self._stored(version), None)

    def wait_for_more(self, timeout_s: float) -> bool:
        raise NotImplementedError

    def prepare_compaction(self, fold: object) -> Ticket:
        raise NotImplementedError

    def prepare_more(self, ticket: Ticket) -> Ticket:
        raise NotImplementedError

    def take_over(
        self, ticket: Ticket | None, timeout_s: float | None = None
    ) -> Statistics | MoreNeeded:
        raise NotImplementedError

    def discard(self, ticket: Ticket | None = None) -> None:
        pass

    def close(self) -> None:
        pass
