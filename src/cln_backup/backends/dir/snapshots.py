"""Snapshots in files of their own: a header, the database in chunks, and a record that ends it."""

from __future__ import annotations

import os
import struct
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.backends.dir.records import Unreadable, records
from cln_backup.backends.dir.store import BUILDING, READ, damaged
from cln_backup.formats import v2
from cln_backup.formats.v2_stream import Decoder, Encoder, Inflater
from cln_backup.model.errors import StorageError
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.dir.store import Header, Store
    from cln_backup.model.change import Snapshot

_LENGTH = struct.Struct("!Q")
_SYNC_EVERY_BYTES: Final = 1 << 23


def write_snapshot_file(
    store: Store,
    purpose: str,
    kind: v2.FileKind,
    number: int,
    epoch: int,
    state: bytes,
    version: int,
    snapshot: Snapshot | None,
    digest: bytes | None = None,
) -> tuple[str, bytes]:
    """Writes a base or a snapshot; returns a name of its own for the file, and its last seal.

    Written and synced when it returns; its name is not. Whatever is raised, no file is left.

    Raises:
        StorageError: also where the snapshot does not have its size, or the digest given.
    """
    header, sealer = store.new_header(kind, number, epoch, state)
    encoder = Encoder(sealer, header[-v2.SEAL_BYTES :])
    built = os.path.join(store.path, BUILDING)
    fd, path = fsio.create_beside(built, purpose, op="create snapshot")
    try:
        end = unsynced = fsio.write_at(fd, [header], 0, op="write snapshot")
        got = 0
        content = sha256()
        for piece in () if snapshot is None else snapshot.chunks():
            for at in range(0, len(piece), v2.CHUNK_BYTES):
                chunk = piece[at : at + v2.CHUNK_BYTES]
                got += len(chunk)
                if digest is not None:
                    content.update(chunk)
                data = encoder.encode(v2.Type.CHUNK, version, chunk)
                end = fsio.write_at(fd, [data], end, op="write snapshot")
            if end - unsynced >= _SYNC_EVERY_BYTES:
                fsio.sync(fd, op="sync part of snapshot")
                unsynced = end
        if snapshot is not None and got != snapshot.size_bytes:
            raise StorageError(
                f"The snapshot was to have {snapshot.size_bytes} bytes and has {got}: the database "
                "changed while it was read. Nothing of it counts; try again."
            )
        if digest not in (None, content.digest()):
            raise StorageError(
                "The database changed while its snapshot was read. Nothing of it counts; try again."
            )
        data = encoder.encode(v2.Type.END, version, _LENGTH.pack(got))
        fsio.write_at(fd, [data], end, op="write snapshot")
        fsio.sync(fd, op="sync snapshot")
    except BaseException:
        fsio.remove(path, op="remove unfinished snapshot")
        raise
    finally:
        os.close(fd)
    return path, encoder.seal


class StoredSnapshot(NamedTuple):
    """A snapshot in its file; `chunks` checks every byte of the file, and reads it each time anew.

    Attributes:
        number: of the file.
        version: data version of the snapshot.
        size_bytes: of the database file.
        seal: the last one, where it is known from elsewhere.
    """

    store: Store
    path: str
    kind: v2.FileKind
    number: int
    version: int
    size_bytes: int
    seal: bytes | None

    def chunks(self) -> Iterator[bytes]:
        """The database file's bytes in order. Raises `Damaged`, `StorageError`."""
        fd = fsio.open_existing(self.path, writable=False, op="open snapshot")
        try:
            header = self.store.read_header(fd, self.path, self.kind, self.number)
            if header is None:
                damaged(self.path, 0, 0, "its header is missing")
            yield from self._chunks(fd, header)
        finally:
            os.close(fd)

    def _chunks(self, fd: int, header: Header) -> Iterator[bytes]:
        decoder = Decoder(header.sealer, header.seal)
        inflater = Inflater()
        size = fsio.size_bytes(fd)
        got = end = 0
        ended = False
        try:
            for record in records(fd, decoder, 0, size):
                if ended or record.version != self.version:
                    raise Unreadable(record.start.offset_bytes, "a record that is not of it")
                end = record.end_bytes
                if record.type is v2.Type.CHUNK:
                    chunk = inflater.inflate(record.payload)
                    got += len(chunk)
                    yield chunk
                elif record.type is v2.Type.END:
                    ended = record.payload == _LENGTH.pack(got) and got == self.size_bytes
        except (Unreadable, v2.Malformed) as error:
            damaged(self.path, end, 0, f"in the snapshot at version {self.version} stands {error}")
        if not ended or self.seal not in (None, decoder.seal):
            damaged(self.path, end, 0, f"the snapshot at version {self.version} is not whole")


def read_back(stored: StoredSnapshot) -> None:
    """Reads what was written, from the disk where the system lets us."""
    fd = fsio.open_existing(stored.path, writable=False, op="read back compacted backup")
    try:
        fsio.forget_cached(fd)
    finally:
        os.close(fd)
    for _ in stored.chunks():
        pass


def last_seal(path: str) -> bytes:
    """The last seal of a base or snapshot, as it stands there, unchecked."""
    fd = fsio.open_existing(path, writable=False, op="open snapshot")
    try:
        at = fsio.size_bytes(fd) - v2.SEAL_BYTES - v2.FOOT_BYTES
        return fsio.read_at(fd, v2.SEAL_BYTES, max(0, at), op=READ)
    finally:
        os.close(fd)


def snapshot_state(store: Store, segment: int, number: int) -> v2.SnapshotState:
    """What the header of a snapshot's file says. Raises `Damaged`, `StorageError`."""
    path = store.snapshot_path(segment, number)
    fd = fsio.open_existing(path, writable=False, op="open snapshot")
    try:
        header = store.read_header(fd, path, v2.FileKind.SNAPSHOT, number)
        if header is None:
            damaged(path, 0, 0, "its header is missing")
    finally:
        os.close(fd)
    return v2.unpack_snapshot_state(header.state)


def check_snapshot(store: Store, segment: int, number: int) -> None:
    """Checks every byte of a snapshot's file. Raises `Damaged`, `StorageError`."""
    version, size, _ = snapshot_state(store, segment, number)
    path = store.snapshot_path(segment, number)
    kind = v2.FileKind.SNAPSHOT
    for _ in StoredSnapshot(store, path, kind, number, version, size, None).chunks():
        pass
