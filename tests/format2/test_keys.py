"""The files of key slots as others may leave them, and what becomes of keys."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer, place_at
from cln_backup.backends.dir import keys as dir_keys
from cln_backup.backends.dir.keys import key_slots
from cln_backup.backends.dir.upkeep import remove_expired
from cln_backup.backends.secrets import Secret, passphrase_secret, secret_from
from cln_backup.compaction.compactor import Compactor
from cln_backup.formats.key_slots import KeySlot, SecretKind, pack_key_slot, unpack_key_slot
from cln_backup.formats.v2 import Malformed
from cln_backup.model.change import Change
from cln_backup.model.errors import AlreadyExists, BackupError, Damaged, Locked, StorageError
from cln_backup.operations.initialize import initialize
from cln_backup.operations.keyring import add_key, is_encrypted, list_keys, remove_key
from cln_backup.storage import fsio
from cln_backup.storage.local_objects import LocalObjects
from tests.format2.small import SNAPSHOT, url_of
from tests.histories import (
    add_all,
    append,
    payments,
    prepared,
    started_node,
    take_over,
    told,
    told_by,
)

if TYPE_CHECKING:
    from pathlib import Path

    from cln_backup.storage.objects import Objects


@pytest.mark.parametrize(
    "cost",
    [(0, 0, 0), (1 << 18, 0, 1), (1 << 18, 3, 0), (7, 1, 1), (1 << 21, 64, 1), (1 << 31, 1, 1)],
)
def test_cost_of_a_passphrase_that_no_program_writes_is_damage(cost: tuple[int, ...]) -> None:
    whole = pack_key_slot(SecretKind.KEY_FILE, "one", bytes(16), 0, bytes(32), bytes(32), bytes(32))
    kind = bytes([SecretKind.PASSPHRASE])
    opened = whole[:8] + kind + whole[9:72] + struct.pack("!III", *cost) + whole[84:164]
    with pytest.raises(Malformed, match="key slot"):
        unpack_key_slot(opened + hashlib.sha256(opened).digest())


def test_passphrase_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    for end in (b"", b"\n", b"\r\n", b"\n\nanother line\n"):
        file.write_bytes(b"four words on paper" + end)
        found = secret_from(("passphrase-file", str(file)))
        assert found == passphrase_secret("four words on paper")


def test_passphrase_is_the_same_from_every_keyboard(tmp_path: Path) -> None:
    """One system sends an accent with its letter, another after it."""
    place, file = tmp_path / "backup", tmp_path / "passphrase"
    file.write_bytes("cafe\u0301 \u212bngstro\u0308m\n".encode())
    create_backend(f"dir://{place}?passphrase-file={file}", None)
    secret = passphrase_secret("caf\u00e9 \u00c5ngstr\u00f6m")
    assert place_at(f"dir://{place}").open_reader(secret=secret).standing.head is None


def test_key_file_stays_as_long_as_a_backup_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the backup cannot be taken away, it can be read; else neither of the two stays."""
    node, url = tmp_path / "regtest", f"dir://{tmp_path}/backup"
    node.mkdir()
    remove = fsio.remove

    def failing(path: str, *, op: str) -> None:
        if "/base-" in path:
            raise StorageError(f"Cannot {op}: input/output error")
        remove(path, op=op)

    def full_disk(path: str, content: bytes, *, op: str, new: bool = False) -> None:
        raise StorageError(f"Cannot {op} {path}: {len(content)} {new}")

    with monkeypatch.context() as patched:
        patched.setattr(fsio, "remove", failing)
        patched.setattr(fsio, "write_file", full_disk)
        with pytest.raises(StorageError, match="remove unfinished backup"):
            initialize(url, str(node), encrypt=True)
    assert open_reader(f"{url}?key-file={node}/backup.key").standing.head is None
    with pytest.raises(AlreadyExists):
        initialize(f"{url}-2", str(node), encrypt=True)
    (node / "backup.key").unlink()
    (tmp_path / "taken").touch()
    with pytest.raises(BackupError):
        initialize(f"dir://{tmp_path}/taken/x", str(node), encrypt=True)
    assert not (node / "backup.key").exists()


def test_two_keys_that_are_removed_at_once_are_not_the_last_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / name for name in ("first", "second")]
    for file in files:
        file.write_bytes(file.name.ljust(32).encode())
    url = f"dir://{tmp_path}/backup?key-file={files[0]}"
    create_backend(url, None)
    add_key(url, secret_from(("key-file", str(files[1]))), "second")
    listed = threading.Barrier(2)

    def all_key_slots(objects: Objects, backup_id: bytes) -> list[KeySlot]:
        found = key_slots(objects, backup_id)
        with contextlib.suppress(threading.BrokenBarrierError):
            listed.wait(0.5)  # for the other one, which must not come as far
        return found

    monkeypatch.setattr(dir_keys, "key_slots", all_key_slots)
    refused = []

    def remove(label: str) -> None:
        try:
            remove_key(url, label)
        except Locked:
            refused.append(label)

    threads = [threading.Thread(target=remove, args=(name,)) for name in ("key-file", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1
    assert [key.label for key in list_keys(url)] == refused


def test_keys_of_a_backup_that_was_moved_away_are_not_removed(tmp_path: Path) -> None:
    url = url_of("encrypted", tmp_path)
    create_backend(url, None)
    append(url, started_node())
    node, safe = tmp_path / "node", tmp_path / "safe"
    safe.mkdir()
    for path in (*node.glob("base-*"), *node.glob("log-*")):
        path.rename(safe / path.name)
    (node / "spare").unlink(missing_ok=True)
    create_backend(url, None)
    (node / "unused.key-key-file").rename(safe / "key-key-file")
    assert told_by(url.replace("/node?", "/safe?")) == told(started_node())
    append(url, started_node())


def test_init_says_that_only_the_nodes_own_key_file_unlocks(tmp_path: Path) -> None:
    for name, secret in (("bare", None), ("whole", bytes(range(32)))):
        node = tmp_path / name
        node.mkdir()
        if secret is not None:
            (node / "hsm_secret").write_bytes(secret)
        command = [
            sys.executable,
            "-m",
            "cln_backup.cli.commands",
            "init",
            "--encrypt",
            "--lightning-dir",
        ]
        done = subprocess.run(
            [*command, str(node), str(tmp_path / f"{name}-backup")],
            capture_output=True,
            text=True,
            check=True,
        )
        assert ("THE BACKUP CANNOT BE READ" in done.stderr) is (secret is None)
        assert json.loads((node / "backup.lock").read_text())


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EBADF, errno.EWOULDBLOCK])
def test_nothing_expires_where_it_cannot_be_locked(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of("plain", tmp_path)
    create_backend(url, None)
    append(url, [*started_node(), *payments(4, 9)])
    flock = fcntl.flock

    def refuse(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX | fcntl.LOCK_NB:
            raise OSError(error, "no locks")
        flock(fd, operation)

    with open_writer(url) as writer:
        with open_reader(url) as reader:
            staged = prepared(reader, Change(7, SNAPSHOT, None), foreign_keys=True)
        monkeypatch.setattr(fcntl, "flock", refuse)
        take_over(writer, staged)
        remove_expired(LocalObjects(str(tmp_path / "node")), 0, 0)
        monkeypatch.undo()
        assert (tmp_path / "node" / "base-0000000001-0000000001").exists()
        remove_expired(LocalObjects(str(tmp_path / "node")), 0, 0)
        assert not (tmp_path / "node" / "base-0000000001-0000000001").exists()


def test_single_plain_file_in_an_encrypted_backup_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    encrypted, plain = url_of("encrypted", tmp_path), url_of("plain", tmp_path / "other")
    for url in (encrypted, plain):
        create_backend(url, None)
        append(url, started_node())
    log = tmp_path / "node" / "log-0000000001"
    backup_id = log.read_bytes()[16:32]
    forged = bytearray((tmp_path / "other" / "node" / "log-0000000001").read_bytes())
    forged[16:32] = backup_id
    log.write_bytes(forged)
    with pytest.raises(Damaged, match="its encryption differs"):
        told_by(encrypted)
    with pytest.raises(Damaged, match="not encrypted, but a key was given"):
        place_at(plain).open_reader(secret=Secret(SecretKind.KEY_FILE, bytes(32)))


def test_encrypted_backup_without_key_files_is_not_said_to_be_plain(tmp_path: Path) -> None:
    """`key list` said "not encrypted", with exit code 0."""
    url = url_of("encrypted", tmp_path)
    create_backend(url, None)
    bare = f"dir://{tmp_path}/node"
    assert is_encrypted(bare)
    for key in (tmp_path / "node").glob("key-*"):
        key.unlink()
    for ask in (
        lambda: list_keys(bare),
        lambda: is_encrypted(bare),
        lambda: remove_key(bare, "key-file"),
        lambda: open_reader(url),
    ):
        with pytest.raises(Locked, match="is encrypted and has no key slots"):
            ask()


def test_second_process_of_a_compaction_gets_the_secret(tmp_path: Path) -> None:
    """The URL does not name it, and a second process can ask nobody."""
    place, secret = place_at(f"dir://{tmp_path}/node"), Secret(SecretKind.KEY_FILE, os.urandom(32))
    with place.creating(secret=secret):
        pass
    with place.open_writer(secret=secret) as writer:
        add_all(writer, started_node())
        compactor = Compactor(writer, secret=secret)
        while (done := compactor.step()) is None:
            pass
        compactor.close()
        compactor.wait()
        assert done["after"]["version_count"] == writer.standing.version_count == 2
