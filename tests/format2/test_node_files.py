"""The object with a node's small files, and the sets of them in a backup."""

from __future__ import annotations

import hashlib
import threading
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cln_backup.backends import create_backend, open_writer, place_at
from cln_backup.backends.dir.upkeep import remove_expired
from cln_backup.backends.node_files import KEPT, KeptFiles, set_name
from cln_backup.formats.node_files import OPEN_BYTES, pack, unpack
from cln_backup.formats.v2 import Malformed
from cln_backup.model.change import Change
from cln_backup.model.errors import Damaged, StorageError
from cln_backup.model.node_files import MAX_BYTES, MAX_FILES, NodeFile, NodeFiles, is_valid_name
from cln_backup.operations.copy import copy
from cln_backup.storage.local_objects import LocalObjects
from tests.format2.small import KINDS, SNAPSHOT, make_every_kind_of_file, read_all, url_of
from tests.histories import append, payment, prepared, started_node, take_over

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

KEY = bytes(range(32))
BACKUP = b"0123456789abcdef"
SALT = bytes(range(32, 64))
KEYS = (None, KEY)

names = st.builds(
    lambda place, rest: f"{place}/{rest}",
    st.sampled_from(["network", "base", "tor"]),
    st.sampled_from(["config", "emergency.recover", "ca-key.pem", "sub/dir/x", "größe", "a b"]),
)
sets = st.dictionaries(
    names, st.tuples(st.integers(0, 0o777), st.integers(0, 1 << 47), st.binary(max_size=300))
).map(lambda found: tuple(NodeFile(name, *found[name]) for name in sorted(found)))


def a_set(mark: str = "one") -> NodeFiles:
    config = NodeFile("network/config", 0o600, 1_700_000_000_123, f"# {mark}\n".encode())
    secret = NodeFile("network/hsm_secret", 0o400, 1_600_000_000_000, bytes(32))
    return NodeFiles(1_700_000_001_000, (config, secret))


@settings(max_examples=60, deadline=None)
@given(files=sets, taken_ms=st.integers(0, 1 << 47), key=st.sampled_from(KEYS))
def test_files_come_back_as_they_were(
    files: tuple[NodeFile, ...], taken_ms: int, key: bytes | None
) -> None:
    packed = pack(NodeFiles(taken_ms, files), BACKUP, 7, SALT, key)
    assert unpack(packed, BACKUP, 7, key) == (taken_ms, files)


@pytest.mark.parametrize("key", KEYS, ids=KINDS)
def test_every_flipped_bit_is_found(key: bytes | None) -> None:
    packed = pack(a_set(), BACKUP, 7, SALT, key)
    for at in range(len(packed)):
        for bit in (0, 7):
            changed = bytearray(packed)
            changed[at] ^= 1 << bit
            with pytest.raises(Malformed):
                unpack(bytes(changed), BACKUP, 7, key)


@pytest.mark.parametrize("key", KEYS, ids=KINDS)
def test_every_shorter_object_and_a_longer_one_are_refused(key: bytes | None) -> None:
    packed = pack(a_set(), BACKUP, 7, SALT, key)
    for length in range(len(packed)):
        with pytest.raises(Malformed):
            unpack(packed[:length], BACKUP, 7, key)
    with pytest.raises(Malformed):
        unpack(packed + b"\0", BACKUP, 7, key)


def test_set_of_another_number_backup_or_key_is_refused() -> None:
    packed = pack(a_set(), BACKUP, 7, SALT, KEY)
    others: list[tuple[bytes, int, bytes | None]] = [
        (BACKUP, 8, KEY),
        (bytes(16), 7, KEY),
        (BACKUP, 7, bytes(32)),
        (BACKUP, 7, None),
    ]
    for other in others:
        with pytest.raises(Malformed):
            unpack(packed, *other)


def test_encrypted_set_does_not_show_its_files() -> None:
    packed = pack(a_set(), BACKUP, 7, SALT, KEY)
    assert b"config" not in packed
    with pytest.raises(zlib.error):
        zlib.decompress(packed[OPEN_BYTES:])


def sealed_by_hand(unpacked: bytes) -> bytes:
    """A plain object of bytes that no program writes, with a right digest."""
    opened = pack(a_set(), BACKUP, 7, SALT, None)[:OPEN_BYTES]
    content = opened + zlib.compress(unpacked)
    return content + hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    "unpacked",
    [
        bytes(MAX_BYTES + (1 << 20)),
        (MAX_FILES + 1).to_bytes(2, "big"),
        bytes.fromhex("0001000e01a4") + bytes(12) + b"network/../abc",
        bytes.fromhex("0001000701a4") + bytes(12) + b"network",
        bytes.fromhex("0001000e09ff") + bytes(12) + b"network/config",
        bytes.fromhex("0001000e01a4") + bytes(8) + b"\xff\xff\xff\xff" + b"network/config",
        bytes.fromhex("0002") + 2 * (bytes.fromhex("000e01a4") + bytes(12) + b"network/config"),
        b"\x00",
    ],
    ids=["bomb", "too-many", "leads-out", "no-path", "setuid", "longer-than-all", "twice", "short"],
)
def test_content_that_no_program_writes_is_refused(unpacked: bytes) -> None:
    with pytest.raises(Malformed):
        unpack(sealed_by_hand(unpacked), BACKUP, 7, None)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "config",
        "network/",
        "network//a",
        "network/../a",
        "elsewhere/config",
        "tor/\n",
        "network/\udcff",
        "/etc/passwd",
        "network/" + "x" * 250,
        "network/.",
    ],
)
def test_name_that_leads_elsewhere_is_not_valid(name: str) -> None:
    assert not is_valid_name(name)


KEPT_IN = ("plain", "encrypted", "objects")


def place_of(kind: str, directory: Path) -> str:
    if kind != "objects":
        return url_of(kind, directory)
    key = url_of("encrypted", directory).partition("?")[2]
    return f"objects://{directory}/node?{key}"


def keep(url: str, *marks: str) -> None:
    with place_at(url).open_reader() as reader:
        assert reader.kept_files is not None
        for mark in marks:
            reader.kept_files.put(a_set(mark))


def newest_of(url: str) -> Any:
    with place_at(url).open_reader() as reader:
        assert reader.kept_files is not None
        return reader.kept_files.newest()


def sets_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.startswith("files-"))


@pytest.mark.parametrize("kind", KEPT_IN)
def test_newest_set_wins_and_few_are_kept(kind: str, tmp_path: Path) -> None:
    url = place_of(kind, tmp_path)
    create_backend(url, None)
    assert newest_of(url) is None
    keep(url, "1", "2", "3", "4", "5")
    assert newest_of(url)[:2] == (5, a_set("5"))
    assert sets_in(tmp_path / "node") == [set_name(number) for number in (3, 4, 5)]
    with place_at(url).open_reader() as reader:
        assert reader.kept_files is not None
        assert reader.kept_files.taken_at() == 1_700_000_001.0
        assert reader.kept_files.is_encrypted == (kind != "plain")


@pytest.mark.parametrize("kind", KEPT_IN)
def test_damaged_set_is_passed_over_for_the_one_before(kind: str, tmp_path: Path) -> None:
    url = place_of(kind, tmp_path)
    create_backend(url, None)
    keep(url, "1", "2")
    for number, expected in ((2, (1, a_set("1"))), (1, None)):
        file = tmp_path / "node" / set_name(number)
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        if expected is None:
            with pytest.raises(Damaged, match="node's files in the backup are damaged"):
                newest_of(url)
        else:
            found = newest_of(url)
            assert found[:2] == expected
            assert [name.rpartition("/")[2] for name in found.damaged] == [set_name(2)]


@pytest.mark.parametrize("kind", KEPT_IN)
def test_two_that_keep_files_at_once_both_do(kind: str, tmp_path: Path) -> None:
    url = place_of(kind, tmp_path)
    create_backend(url, None)
    barrier = threading.Barrier(2)

    def keep_one(mark: str) -> None:
        barrier.wait()
        keep(url, mark)

    threads = [threading.Thread(target=keep_one, args=(mark,)) for mark in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sets_in(tmp_path / "node") == [set_name(1), set_name(2)]
    assert newest_of(url).files in (a_set("a"), a_set("b"))


class Ending(LocalObjects):
    """Ends at one of its steps, as a process that is killed there."""

    def __init__(self, directory: str, left: int) -> None:
        super().__init__(directory, building="adding")
        self.left = left

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise SystemExit

    def prepare(self, purpose: str, content: Iterable[bytes]) -> str:
        self._step()
        return super().prepare(purpose, content)

    def publish(self, prepared: str, name: str, *, op: str, withdraws: bool = True) -> None:
        self._step()
        super().publish(prepared, name, op=op, withdraws=withdraws)
        self._step()

    def discard(self, prepared: str, *, in_steps: bool = False) -> None:
        """A killed process discards nothing."""

    def delete(self, name: str, *, op: str) -> None:
        self._step()
        super().delete(name, op=op)
        self._step()


def test_killed_at_any_step_a_whole_set_is_there(tmp_path: Path) -> None:
    whole = 0
    for steps in range(50):
        directory = tmp_path / str(steps)
        directory.mkdir()
        kept = KeptFiles(LocalObjects(str(directory)), BACKUP, KEY)
        for mark in "123":
            kept.put(a_set(mark))
        try:
            KeptFiles(Ending(str(directory), steps), BACKUP, KEY).put(a_set("4"))
            whole += 1
        except SystemExit:
            pass
        found = kept.newest()
        assert found is not None
        assert found.files in (a_set("3"), a_set("4"))
        kept.put(a_set("5"))
        assert len(sets_in(directory)) == KEPT
        if whole:
            break
    assert whole == 1
    assert steps > 3


def test_full_disk_leaves_the_earlier_sets(tmp_path: Path, monkeypatch: Any) -> None:
    kept = KeptFiles(LocalObjects(str(tmp_path)), BACKUP, None)
    kept.put(a_set("1"))

    def full(*_arguments: object, **_options: object) -> str:
        raise StorageError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalObjects, "prepare", full)
        with pytest.raises(StorageError):
            kept.put(a_set("2"))
    found = kept.newest()
    assert found is not None
    assert found[:2] == (1, a_set("1"))


@pytest.mark.parametrize("kind", KINDS)
def test_history_is_read_and_continued_beside_the_files(kind: str, tmp_path: Path) -> None:
    url = url_of(kind, tmp_path)
    make_every_kind_of_file(url)
    before = read_all(url)
    with open_writer(url) as writer:
        size_before = writer.size_bytes
        keep(url, "1")
        writer.add_change(payment(9))
        assert writer.size_bytes < size_before + 10_000
    after, notices = read_all(url)
    assert after[: len(before[0])] == before[0]
    assert notices == before[1]
    with open_writer(url) as writer, place_at(url).open_reader() as reader:
        take_over(writer, prepared(reader, Change(8, SNAPSHOT, None), foreign_keys=True))
        remove_expired(LocalObjects(str(tmp_path / "node")), 0, 0)
    read_all(url)
    assert newest_of(url)[:2] == (1, a_set("1"))


@pytest.mark.parametrize("kind", KEPT_IN)
def test_copy_takes_the_files_along(kind: str, tmp_path: Path) -> None:
    url = place_of(kind, tmp_path)
    create_backend(url, None)
    append(url, started_node())
    keep(url, "1", "2")
    target = url.replace("/node", "/copy", 1).replace("objects:", "dir:")
    copy(url, target)
    assert newest_of(target)[:2] == (1, a_set("2"))


def test_copy_without_encryption_leaves_the_files_of_an_encrypted_backup_out(
    tmp_path: Path,
) -> None:
    url = url_of("encrypted", tmp_path)
    create_backend(url, None)
    append(url, started_node())
    keep(url, "1")
    copied = copy(url, f"dir://{tmp_path}/copy")
    assert copied.has_node_files is False
    assert sets_in(tmp_path / "copy") == []


def test_copy_of_the_history_succeeds_without_damaged_files(tmp_path: Path) -> None:
    url = url_of("plain", tmp_path)
    create_backend(url, None)
    append(url, started_node())
    assert copy(url, f"dir://{tmp_path}/first").has_node_files is None
    keep(url, "1")
    (tmp_path / "node" / set_name(1)).write_bytes(b"CLNFIL2")
    assert copy(url, f"dir://{tmp_path}/second").has_node_files is False


def test_sets_without_a_base_are_kept_when_a_backup_is_made_there(tmp_path: Path) -> None:
    """They may belong to a backup whose other files were moved away."""
    url = url_of("encrypted", tmp_path)
    create_backend(url, None)
    keep(url, "1")
    before = (tmp_path / "node" / set_name(1)).read_bytes()
    for path in (tmp_path / "node").glob("base-*"):
        path.unlink()
    create_backend(url, None)
    assert newest_of(url) is None
    assert (tmp_path / "node" / f"unused.{set_name(1)}").read_bytes() == before
