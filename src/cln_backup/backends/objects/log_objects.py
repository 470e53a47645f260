"""The objects of a backup, those of its log read ahead, whether they are merged or not."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from cln_backup.backends.dir.store import Store, segment_name
from cln_backup.backends.objects.layout import Layout, pack_name, packs_of, read_layout, unpack
from cln_backup.formats import v2
from cln_backup.model.errors import Damaged, StorageError
from cln_backup.storage.objects import ObjectStatus
from cln_backup.storage.remote_objects import RemoteObjects
from cln_backup.storage.source import BytesSource

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from cln_backup.storage.bucket import Bucket
    from cln_backup.storage.source import Source

_LOG: Final = "log-"
_HELD_BYTES: Final = 32 << 20
_AHEAD: Final = 32
_AHEAD_BYTES: Final = 16 << 20


class LogObjects(RemoteObjects):
    """The objects of a backup; what is read in the order of the log is fetched in parallel.

    Attributes:
        layout: of the last `refresh`.
    """

    def __init__(self, bucket: Bucket) -> None:
        super().__init__(bucket)
        self.layout = Layout({}, [], [], [], [], [], {})
        self._held: OrderedDict[int, bytes] = OrderedDict()
        self._held_bytes = 0
        self._coming: dict[str, Future[dict[int, bytes]]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._expected = 0

    def refresh(self) -> Layout:
        """Lists the backup again."""
        self.layout = read_layout(self.bucket)
        return self.layout

    def open(self, name: str, *, op: str, anew: bool = False) -> Source:  # type: ignore[override]
        """See `Objects.open`."""
        if not name.startswith(_LOG):
            return super().open(name, op=op, anew=anew)
        return BytesSource(self._log(int(name.removeprefix(_LOG))))

    def status(self, name: str) -> ObjectStatus | None:
        """See `Objects.status`."""
        if name.startswith(_LOG):
            for found in self._names_of(int(name.removeprefix(_LOG))):
                listed = self.layout.objects[found]
                size_bytes = listed.size_bytes if found == name else 0
                return ObjectStatus(size_bytes, listed.stored_at)
        return super().status(name)

    def stored(self, name: str) -> bytes | None:
        """The content of an object that is not in a pack; `None` if there is none."""
        if super().status(name) is None:
            return None
        with super().open(name, op="read") as source:
            return source.read_at(0, source.size_bytes())

    def _log(self, number: int) -> bytes:
        found = self._held.get(number)
        if found is None:
            found = self._fetched(number)
        self._expected = number + 1
        return found

    def _fetched(self, number: int) -> bytes:
        for again in (False, True):
            if again:  # it was merged meanwhile
                self._forget()
                self.refresh()
            if number == self._expected:
                self._read_ahead(number)
            for name in self._names_of(number):
                coming = self._coming.pop(name, None)
                found = self._fetch(name) if coming is None else coming.result()
                for one, content in found.items():
                    self._hold(one, content)
                if number in found:
                    return found[number]
        raise StorageError(
            f"{self.where(segment_name(number))} is missing: it was folded by a compaction while "
            "it was read, or removed. Try again."
        )

    def _names_of(self, number: int) -> Iterator[str]:
        """The names of objects that may contain one of the log; packs first."""
        for found in packs_of(number, self.layout.packs):
            yield pack_name(*found)
        if segment_name(number) in self.layout.objects:
            yield segment_name(number)

    def _fetch(self, name: str) -> dict[int, bytes]:
        """The objects of the log in one object; none if it does not exist any more."""
        content = self._content(name)
        if content is None:
            return {}
        if name.startswith(_LOG):
            return {int(name.removeprefix(_LOG)): content}
        try:
            found = unpack(content)
        except v2.Malformed as error:
            raise Damaged(f"{self.where(name)} is damaged: it is {error}.") from None
        if pack_name(min(found, default=0), max(found, default=0)) != name:
            raise Damaged(f"{self.where(name)} is damaged: it has other numbers than its name.")
        return found

    def _content(self, name: str) -> bytes | None:
        # As a rule, one request: few are larger than listed, since they are in parts.
        found = self.bucket.read(name, 0, self.layout.objects[name].size_bytes)
        if found is None:
            return None
        return self.stored(name) if self.is_in_parts(found.content) else found.content

    def _read_ahead(self, number: int) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_AHEAD)
        names: list[str] = []
        size_bytes, last = 0, self.layout.last_number
        while number <= last and len(names) < _AHEAD and size_bytes < _AHEAD_BYTES:
            name = next(self._names_of(number), None)
            number += 1
            if name is not None and number - 1 not in self._held:
                names.append(name)
                size_bytes += self.layout.objects[name].size_bytes
                if not name.startswith(_LOG):
                    number = int(name.rpartition("-")[2]) + 1
        for name in names:
            if name not in self._coming:
                self._coming[name] = self._pool.submit(self._fetch, name)
        for stale in self._coming.keys() - set(names):
            self._coming.pop(stale).cancel()

    def _hold(self, number: int, content: bytes) -> None:
        if number not in self._held:
            self._held_bytes += len(content)
        self._held[number] = content
        while self._held_bytes > _HELD_BYTES and len(self._held) > 1:
            _, old = self._held.popitem(last=False)
            self._held_bytes -= len(old)

    def _forget(self) -> None:
        for one in self._coming.values():
            one.cancel()
        self._coming.clear()

    def close(self) -> None:
        """Ends the threads that read ahead."""
        self._forget()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


class ObjectsStore(Store):
    """As of a `dir:` backup; every header has a salt, so no two writers make equal objects."""

    salted = True
    one_record = True

    def folded_bytes(self, base: str, segment: int, replacement: str) -> int:
        """See `Store.folded_bytes`."""
        objects = self.objects
        assert isinstance(objects, LogObjects)
        layout = objects.refresh()
        first = int(base.rpartition("-")[2])
        gone = layout.size_bytes(layout.log_names(first, segment - 1))
        gone += sum(
            self.object_bytes(f"snapshot-{referrer:010}-{own:010}")
            for referrer, own in layout.snapshots
            if first <= referrer < segment
        )
        return gone + self.object_bytes(base) - layout.parts.get(replacement, 0)
