"""The position of a `dir:` backup: its digest is chained over all changes, whatever happens."""

from __future__ import annotations

import random
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.dir import store as dir_store
from cln_backup.compaction.compact import compact
from cln_backup.model.change import Change
from cln_backup.model.errors import StorageError
from cln_backup.operations.copy import copy
from tests.format2.small import KINDS, url_of
from tests.histories import OFF, ON, append, first, payment, rider, snapshot_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cln_backup.model.position import Position

DOMAIN = b"cln-backup history"
VECTORS = Path(__file__).parent.parent / "vectors"


def digest_of(changes: Sequence[Change]) -> bytes:
    """The digest of a history, by the rules of `docs/format.md` and nothing else."""
    digest = sha256(DOMAIN).digest()
    for change in changes:
        kind, content = 1, b""
        if change.snapshot is not None:
            kind, content = 2, sha256(b"".join(change.snapshot.chunks())).digest()
        elif change.transaction is not None:
            content = b"\0".join(text.encode() for text in change.transaction)
        link = DOMAIN + digest + bytes([kind]) + change.version.to_bytes(8, "big") + content
        digest = sha256(link).digest()
    return digest


def position(url: str) -> Position:
    """As a new reader finds it."""
    with open_reader(url) as backend:
        return backend.standing.position


def checked(url: str, changes: Sequence[Change]) -> None:
    version = changes[-1].version if changes else 0
    assert position(url) == (version, len(changes), digest_of(changes))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
def test_digest_is_that_of_all_changes_whatever_happens(
    kind: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes of each kind, drops, new writers, full segments and compactions, in any order."""
    monkeypatch.setattr(dir_store, "FIRST_SEGMENT_BYTES", 2048)
    chance = random.Random(seed)
    url = url_of(kind, tmp_path)
    create_backend(url, None)
    changes = [first(), payment(2)]
    append(url, changes)
    droppable = True
    for step in range(16):
        version = changes[-1].version
        action = chance.choice(("payment", "payment", "riders", "snapshot", "drop", "compact"))
        with open_writer(url) as backend:
            if action == "drop" and droppable and changes[-1].snapshot is None:
                backend.rewind()
                changes.pop()
                droppable = False
            for change in _new(action, version, f"{step} " * chance.choice((1, 600)), changes):
                backend.add_change(change)
                changes.append(change)
                droppable = True
            assert backend.standing.position == position(url)
        if action == "compact":
            compact(url)
        checked(url, changes)
    with open_reader(url) as backend:
        backend.check()


def _new(action: str, version: int, text: str, changes: Sequence[Change]) -> list[Change]:
    if action == "payment":
        return [payment(version + 1, text)]
    if action == "riders":
        return [rider(version, OFF), rider(version, ON)]
    if action == "snapshot":
        with tempfile.TemporaryDirectory() as directory:
            return [snapshot_of(changes, Path(directory) / "node.sqlite3")]
    return []


@pytest.mark.parametrize("kind", KINDS)
def test_two_histories_at_one_version_are_told_apart(kind: str, tmp_path: Path) -> None:
    """The last change was dropped in one of two copies, and another one made in its place."""
    url = url_of(kind, tmp_path)
    create_backend(url, None)
    append(url, [first(), payment(2)])
    shutil.copytree(tmp_path / "node", tmp_path / "other")
    other = url.replace("/node", "/other", 1)
    assert position(url) == position(other)
    with open_writer(other) as backend:
        backend.rewind()
        backend.add_change(payment(2, "another one"))
        backend.add_change(payment(3))
    append(url, [payment(3)])
    assert position(url).version == position(other).version
    assert position(url).is_other_history(position(other))


def test_digest_does_not_depend_on_the_format(tmp_path: Path) -> None:
    """An encrypted backup and a plain one with one history, one of them compacted."""
    history = [first(), *(payment(version) for version in range(2, 9))]
    found = []
    for kind in KINDS:
        directory = tmp_path / kind
        directory.mkdir()
        url = url_of(kind, directory)
        create_backend(url, None)
        append(url, history)
        if kind == "plain":
            compact(url)
        found.append(position(url))
    assert found == [(8, 8, digest_of(history))] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_backup_of_an_earlier_release_has_no_digest(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later changes do not reveal the digest of those before."""
    monkeypatch.setattr(dir_store, "FIRST_SEGMENT_BYTES", 2048)  # as they were made with
    place = tmp_path / "vector"
    shutil.copytree(VECTORS / f"format2-{kind}", place)
    url = f"dir://{place}/node" + (f"?key-file={place}/node.key" if kind == "encrypted" else "")
    before = position(url)
    assert before.digest is None
    append(url, [payment(9)])
    append(url, [payment(10)])
    assert position(url) == (10, before.changes + 2, None)


def test_snapshot_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """Its digest is made first, so that the header can hold it."""
    url = url_of("plain", tmp_path)
    create_backend(url, None)
    append(url, [first()])
    with (
        open_writer(url) as backend,
        pytest.raises(StorageError, match="changed while it was read"),
    ):
        backend.add_change(Change(1, Changing(), None))
    checked(url, [first()])


class Changing:
    """A database file that has other content each time it is read."""

    size_bytes = 24
    _reads = 0

    def chunks(self) -> Iterator[bytes]:
        self._reads += 1
        yield b"SQLite format 3\x00" + self._reads.to_bytes(8, "big")


@pytest.mark.parametrize("compacted", [False, True])
def test_copy_has_the_position_of_the_original(compacted: bool, tmp_path: Path) -> None:
    """Also where the original has merged what came before its first snapshot."""
    plain, encrypted = (url_of(kind, tmp_path) for kind in KINDS)
    encrypted = encrypted.replace("/node", "/copy", 1)
    create_backend(plain, None)
    history = [first(), *(payment(version) for version in range(2, 9))]
    append(plain, history)
    if compacted:
        compact(plain)
    copy(plain, encrypted)
    checked(encrypted, history)
    append(encrypted, [payment(9)])
    compact(encrypted)
    checked(encrypted, [*history, payment(9)])
