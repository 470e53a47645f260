"""Snapshots in files of their own: a header, the database in chunks, and a record that ends it."""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends.dir.records import Unreadable, records
from cln_backup.backends.dir.store import damaged, snapshot_name
from cln_backup.formats import v2
from cln_backup.formats.v2_stream import Decoder, Encoder, Inflater
from cln_backup.model.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.dir.store import Header, Store
    from cln_backup.formats.seals import Sealer
    from cln_backup.model.change import Snapshot
    from cln_backup.storage.source import Source

_LENGTH = struct.Struct("!Q")


class NewSnapshot:
    """The content of the file of a base, a snapshot or a dropped change.

    Attributes:
        seal: the last one, after all of `chunks` was read.
    """

    def __init__(
        self,
        header: tuple[bytes, Sealer],
        version: int,
        snapshot: Snapshot | None,
        digest: bytes | None = None,
    ) -> None:
        """`header` comes from `Store.new_header`; `digest` is the content's, if known."""
        self._header, sealer = header
        self._encoder = Encoder(sealer, self._header[-v2.SEAL_BYTES :])
        self._version = version
        self._snapshot = snapshot
        self._digest = digest

    @property
    def seal(self) -> bytes:
        """See above."""
        return self._encoder.seal

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes in order, once.

        Raises `StorageError` if the snapshot does not have its size, or the given digest.
        """
        yield self._header
        version, snapshot, encode = self._version, self._snapshot, self._encoder.encode
        got = 0
        content = sha256()
        for piece in () if snapshot is None else snapshot.chunks():
            for at in range(0, len(piece), v2.CHUNK_BYTES):
                chunk = piece[at : at + v2.CHUNK_BYTES]
                got += len(chunk)
                if self._digest is not None:
                    content.update(chunk)
                yield encode(v2.Type.CHUNK, version, chunk)
        if snapshot is not None and got != snapshot.size_bytes:
            raise StorageError(
                f"The database changed while it was read: expected {snapshot.size_bytes} bytes, "
                f"got {got}. The snapshot is not used; try again."
            )
        if self._digest not in (None, content.digest()):
            raise StorageError(
                "The database changed while it was read. The snapshot is not used; try again."
            )
        yield encode(v2.Type.END, version, _LENGTH.pack(got))


class StoredSnapshot(NamedTuple):
    """A snapshot in its file; each call of `chunks` reads the file again and checks every byte.

    Attributes:
        name: of the object.
        number: of the file.
        version: data version of the snapshot.
        size_bytes: of the database file.
        seal: the last one, if it is known from another place.
    """

    store: Store
    name: str
    kind: v2.FileKind
    number: int
    version: int
    size_bytes: int
    seal: bytes | None

    def chunks(self) -> Iterator[bytes]:
        """The database file's bytes in order. Raises `Damaged`, `StorageError`."""
        with self.store.objects.open(self.name, op="open snapshot") as source:
            header = self.store.read_header(source, self.name, self.kind, self.number)
            path = self.store.objects.where(self.name)
            if header is None:
                damaged(path, 0, 0, "its header is missing")
            yield from self._chunks(source, header, path)

    def _chunks(self, source: Source, header: Header, path: str) -> Iterator[bytes]:
        decoder = Decoder(header.sealer, header.seal)
        inflater = Inflater()
        got = end = 0
        ended = False
        try:
            for record in records(source, decoder, 0, source.size_bytes()):
                if ended or record.version != self.version:
                    raise Unreadable(record.start.offset_bytes, "a record of a different kind")
                end = record.end_bytes
                if record.type is v2.Type.CHUNK:
                    chunk = inflater.inflate(record.payload)
                    del record  # a megabyte that is no longer needed
                    got += len(chunk)
                    yield chunk
                    del chunk
                elif record.type is v2.Type.END:
                    ended = record.payload == _LENGTH.pack(got) and got == self.size_bytes
        except (Unreadable, v2.Malformed) as error:
            damaged(path, end, 0, f"the snapshot at version {self.version} contains {error}")
        if not ended or self.seal not in (None, decoder.seal):
            damaged(path, end, 0, f"the snapshot at version {self.version} is incomplete")


def read_back(stored: StoredSnapshot) -> None:
    """Reads a stored snapshot back, from the storage instead of a cache if possible."""
    with stored.store.objects.open(stored.name, op="read back compacted backup", anew=True):
        for _ in stored.chunks():
            pass


def last_seal(store: Store, name: str) -> bytes:
    """The last seal in the file of a base or snapshot, unchecked."""
    with store.objects.open(name, op="open snapshot") as source:
        at = source.size_bytes() - v2.SEAL_BYTES - v2.FOOT_BYTES
        return source.read_at(max(0, at), v2.SEAL_BYTES)


def snapshot_state(store: Store, segment: int, number: int) -> v2.SnapshotState:
    """The state in the header of a snapshot's file. Raises `Damaged`, `StorageError`."""
    name = snapshot_name(segment, number)
    with store.objects.open(name, op="open snapshot") as source:
        header = store.read_header(source, name, v2.FileKind.SNAPSHOT, number)
    if header is None:
        damaged(store.objects.where(name), 0, 0, "its header is missing")
    return v2.unpack_snapshot_state(header.state)


def check_snapshot(store: Store, segment: int, number: int) -> None:
    """Checks every byte of a snapshot's file. Raises `Damaged`, `StorageError`."""
    version, size, _ = snapshot_state(store, segment, number)
    name = snapshot_name(segment, number)
    kind = v2.FileKind.SNAPSHOT
    for _ in StoredSnapshot(store, name, kind, number, version, size, None).chunks():
        pass
