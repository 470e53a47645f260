"""The files of a `dir:` backup: their names, and reading and making their headers."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, NoReturn

from cln_backup.formats import v2
from cln_backup.formats.seals import file_sealer, pack_header, unpack_state
from cln_backup.model.errors import Damaged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cln_backup.formats.seals import Sealer
    from cln_backup.model.change import Change
    from cln_backup.storage.objects import Objects
    from cln_backup.storage.source import Source

SPARE: Final = "spare"
FIRST_SEGMENT_BYTES: Final = 1 << 18
"""Zeros written while the node waits, if no spare is ready; the minimum length of a segment."""
SPARE_BYTES: Final = 1 << 20
"""Zeros that a child process prepares."""
_SEGMENT: Final = "log-"
_NAME = re.compile(r"(?:log-(\d{10})|base-(\d{10})-(\d{10})|snapshot-(\d{10})-(\d{10}))")


class Listing(NamedTuple):
    """The contents of a directory by name, each list sorted.

    Attributes:
        bases: generation, and number of the first segment that it needs.
        segments: their numbers.
        snapshots: number of the segment that refers to it, and its own.
    """

    bases: tuple[tuple[int, int], ...]
    segments: tuple[int, ...]
    snapshots: tuple[tuple[int, int], ...]


class Header(NamedTuple):
    """A valid header.

    Attributes:
        state: of the file's kind, still packed.
        sealer: for the file's records.
        seal: the header's own.
    """

    open: v2.Open
    state: bytes
    sealer: Sealer
    seal: bytes


def segment_name(number: int) -> str:
    """The name of a segment."""
    return f"{_SEGMENT}{number:010}"


def base_name(generation: int, segment: int) -> str:
    """The name of a base, which needs the log from this segment on."""
    return f"base-{generation:010}-{segment:010}"


def snapshot_name(segment: int, number: int) -> str:
    """The name of the snapshot that a record in this segment refers to."""
    return f"snapshot-{segment:010}-{number:010}"


def list_files(objects: Objects) -> Listing:
    """Lists the contents of a backup. Raises `StorageError`."""
    bases, segments, snapshots = [], [], []
    for name in objects.list():
        found = _NAME.fullmatch(name)
        if found is None:
            continue
        segment, generation, first, referrer, number = found.groups()
        if segment is not None:
            segments.append(int(segment))
        elif generation is not None:
            bases.append((int(generation), int(first)))
        else:
            snapshots.append((int(referrer), int(number)))
    return Listing(tuple(bases), tuple(segments), tuple(snapshots))


def newest_segment(objects: Objects) -> int:
    """The number of the newest segment, 0 if there is none; found without parsing all names.

    Raises `StorageError`.
    """
    for name in reversed(objects.list(_SEGMENT)):
        if _NAME.fullmatch(name) is not None:
            return int(name.removeprefix(_SEGMENT))
    return 0


def damaged(path: str, offset_bytes: int, version: int, what: str) -> NoReturn:
    """Raises `Damaged` for a place in a file.

    `version` is the last good one before that place; 0 if unknown.
    """
    raise Damaged(
        f"{path} is damaged at byte {offset_bytes}: {what}. "
        "Nothing was changed; keep the directory as it is. `backup-cli verify` shows more.",
        offset_bytes=offset_bytes,
        good_version=version,
    )


def stored_now_ms(change: Change) -> int:
    """The time of storage of a change that is stored now, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000 if change.stored_ms is None else change.stored_ms


class Store:
    """One backup's objects, with the keys and methods to read and make them.

    Attributes:
        salted: whether a header without encryption has a salt, too: then no two are equal.
        one_record: whether a segment of the log has one record.
    """

    salted: ClassVar[bool] = False
    one_record: ClassVar[bool] = False

    def __init__(self, objects: Objects, backup_id: bytes, master_key: bytes | None) -> None:
        self.objects = objects
        self.backup_id = backup_id
        self.master_key = master_key

    @property
    def path(self) -> str:
        """The directory."""
        return os.path.dirname(self.objects.where(SPARE))

    @property
    def cipher(self) -> int:
        """The cipher of every file."""
        return v2.PLAIN if self.master_key is None else v2.AES_256_GCM

    def log_path(self, segment: int) -> str:
        """The path of a segment."""
        return self.objects.where(segment_name(segment))

    def size_bytes(self, segment: int, end_bytes: int, gone: Sequence[str]) -> int:
        """The size of the files of a log that ends there, without those in `gone`."""
        total = 0
        for name in self.objects.list():
            if name in gone or _NAME.fullmatch(name) is None:
                continue
            if name == segment_name(segment):
                total += end_bytes
            elif not name.startswith(_SEGMENT) or name < segment_name(segment):
                total += self.object_bytes(name)
        return total

    def folded_bytes(self, base: str, segment: int, replacement: str) -> int:
        """The size of the files of a generation that the next one, from this segment on, lacks.

        Minus the size of the base that replaces it.
        """
        listing = list_files(self.objects)
        first = int(base.rpartition("-")[2])
        gone = [base]
        gone += [segment_name(number) for number in listing.segments if first <= number < segment]
        gone += [
            snapshot_name(*found) for found in listing.snapshots if first <= found[0] < segment
        ]
        return sum(map(self.object_bytes, gone)) - self.object_bytes(replacement)

    def object_bytes(self, name: str) -> int:
        """The size of a file; 0 if it has just expired."""
        status = self.objects.status(name)
        return 0 if status is None else status.size_bytes  # 0: just expired

    def new_header(
        self, kind: v2.FileKind, number: int, epoch: int, state: bytes
    ) -> tuple[bytes, Sealer]:
        """The header of a new file, with a fresh key, and the sealer of its records."""
        salt = os.urandom(v2.SALT_BYTES) if self.master_key or self.salted else bytes(v2.SALT_BYTES)
        created_ms = time.time_ns() // 1_000_000
        header = v2.Open(kind, self.cipher, self.backup_id, number, epoch, created_ms, salt)
        sealer = file_sealer(header, self.master_key)
        return pack_header(header, state, sealer), sealer

    def read_header(
        self, source: Source, name: str, kind: v2.FileKind, number: int, version: int = 0
    ) -> Header | None:
        """Reads and checks a header; `None` if there are only zeros.

        A segment of the log may be of either of its two kinds.

        Raises:
            Damaged: it is not valid, or belongs to another file. Up to `version` all is good.
        """
        data = source.read_at(0, v2.HEADER_BYTES)
        if not any(data):
            return None
        path = self.objects.where(name)
        if len(data) < v2.HEADER_BYTES:
            damaged(path, 0, version, "it is too short for a header")
        try:
            found = v2.unpack_open(data)
        except v2.Malformed as error:
            damaged(path, 0, version, f"it has {error}")
        if found.backup_id != self.backup_id:
            damaged(path, 0, version, "it belongs to another backup")
        timed = kind is v2.FileKind.LOG and found.kind is v2.FileKind.TIMED_LOG
        if not (timed or found.kind is kind) or found.number != number:
            damaged(
                path, 0, version, f"its header is that of {found.kind.name.lower()} {found.number}"
            )
        if found.cipher != self.cipher:
            damaged(path, 0, version, "its encryption differs from the backup's")
        sealer = file_sealer(found, self.master_key)
        state = unpack_state(data, sealer)
        if state is None:
            damaged(path, 0, version, "its header was modified")
        return Header(found, state, sealer, data[-v2.SEAL_BYTES :])


def read_open(source: Source, path: str) -> v2.Open:
    """The open part of a file's header, unchecked. Raises `Damaged`."""
    data = source.read_at(0, v2.HEADER_BYTES)
    if len(data) < v2.HEADER_BYTES:
        damaged(path, 0, 0, "it is too short for a header")
    try:
        return v2.unpack_open(data)
    except v2.Malformed as error:
        damaged(path, 0, 0, f"it has {error}")
