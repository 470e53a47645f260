"""`backup-cli restore --node`: what is put back, what is refused, and being stopped anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from cln_backup.backends import place_at
from cln_backup.backends.events import ignore
from cln_backup.backends.secrets import Secret, secret_from, secret_of_words
from cln_backup.formats.hsm_secret import file_of_words, node_id_of, seed_of
from cln_backup.model.errors import (
    AlreadyExists,
    BackupError,
    Discontinuity,
    Locked,
    NodeRunning,
    NotFound,
    WriterConflict,
)
from cln_backup.model.node_files import NodeFile, NodeFiles, Wanted
from cln_backup.node.settings import OnGap, read_settings
from cln_backup.operations.initialize import initialize
from cln_backup.operations.keyring import add_key, list_keys, with_key_file
from cln_backup.operations.whole_node import TOR_DIR, plan, restore_node, unlocking
from cln_backup.storage import fsio
from tests import programs
from tests.histories import assert_same_database, build_database, database, payment, started_node
from tests.operations.neighbours import locking

if TYPE_CHECKING:
    from pathlib import Path

    from cln_backup.model.change import Change
    from cln_backup.operations.whole_node import RestoredNode

WORDS = "abandon " * 11 + "about"
OTHERS = "legal winner thank year wave sausage worth useful legal winner thank yellow"
SECRET = bytes(range(32))
PLUGIN = programs.CLI.with_name("cln-backup").resolve()
KEPT = ("config", "ca.pem", "client-key.pem", "emergency.recover")


class Old:
    """A node whose machine will be lost, and its backup."""

    def __init__(
        self,
        base: Path,
        *,
        hsm_secret: bytes = file_of_words(WORDS),
        node_id: str | None = None,
        wanted: Wanted | None = None,
        encrypt: bool = True,
        scheme: str = "dir",
        url: str | None = None,
    ) -> None:
        self.base = base / "old"
        self.directory = self.base / "bitcoin"
        self.directory.mkdir(parents=True)
        for name in KEPT:
            (self.directory / name).write_text(f"{name} of the node\n")
        (self.directory / "client-key.pem").chmod(0o600)
        (self.base / "config").write_text(f"important-plugin={PLUGIN}\n")
        (self.directory / "hsm_secret").write_bytes(hsm_secret)
        self.database = self.directory / "lightningd.sqlite3"
        build_database(self.database, started_node())
        self.node_id = node_id or node_id_of(seed_of(WORDS))
        with database(self.database) as connection:
            connection.execute("DELETE FROM vars WHERE name = 'node_id'")
            connection.execute(
                f"INSERT INTO vars (name, blobval) VALUES ('node_id', x'{self.node_id}')"
            )
        self.url = url or f"{scheme}://{base}/backup"
        self.done = initialize(self.url, str(self.directory), encrypt=encrypt, files=wanted)
        self.keyed = self.done.backend_url
        with place_at(self.keyed).open_writer(self.node_id) as writer:
            writer.add_change(payment(4))
        with database(self.database) as connection:
            for statement in payment(4).transaction or ():
                connection.execute(statement)

    def add(self, change: Change) -> None:
        with place_at(self.keyed).open_writer() as writer:
            writer.add_change(change)


@pytest.fixture
def old(tmp_path: Path) -> Old:
    return Old(tmp_path)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """The network directory on the bare machine."""
    return tmp_path / "bare" / "bitcoin"


def ask() -> str:
    raise AssertionError("nothing is to be asked")


def back(
    url: str, directory: Path, given: Secret | None = None, passphrase: str | None = None
) -> RestoredNode:
    """Restores the node, with what the operator gave."""
    secret, own = unlocking(url, given)
    asks = ask if passphrase is None else lambda: passphrase or ""
    with place_at(url).open_reader(secret=secret) as reader:
        made = plan(reader, url, str(directory), own, asks)
    return restore_node(url, made, lambda _size: nullcontext(None), secret=secret, on_event=ignore)


def files_in(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.endswith(".pid")
    }


WHOLE = {
    *(f"bitcoin/{name}" for name in (*KEPT, "backup.lock", "backup.key", "hsm_secret")),
    *("config", "bitcoin/lightningd.sqlite3"),
}


def require_whole(old: Old, directory: Path) -> None:
    """Requires that all of the node is there, and that its key unlocks the backup."""
    found = files_in(directory.parent)
    assert found.keys() == WHOLE
    assert_same_database(directory / "lightningd.sqlite3", old.database)
    for name in (*KEPT, "hsm_secret"):
        assert found[f"bitcoin/{name}"] == (old.directory / name).read_bytes(), name
    assert found["config"] == (old.base / "config").read_bytes()
    url = read_settings(str(directory)).backend_url
    assert url == with_key_file(old.url, f"{directory}/backup.key")
    with place_at(url).open_reader() as reader:
        assert reader.version == 4


@pytest.mark.parametrize("scheme", ["dir", "objects"])
def test_node_is_back_with_the_words(scheme: str, tmp_path: Path, new: Path) -> None:
    old = Old(tmp_path, scheme=scheme)
    done = back(old.url, new, secret_of_words(WORDS))
    require_whole(old, new)
    assert done.node_id == old.node_id
    assert [key.label for key in list_keys(old.url)] == ["hsm-secret", "key-file", "key-file-2"]
    assert (new / "hsm_secret").stat().st_mode & 0o777 == 0o400
    assert (new / "client-key.pem").stat().st_mtime == pytest.approx(
        (old.directory / "client-key.pem").stat().st_mtime, abs=0.002
    )
    modes = {path.stat().st_mode & 0o777 for path in (new, new.parent)}
    assert modes == {0o700}
    old.add(payment(5))  # the key of the old machine still unlocks; its slot can be removed


def test_old_writer_is_fenced(tmp_path: Path, new: Path) -> None:
    """One that another machine has open, which no lock of this one shows."""
    old = Old(tmp_path, scheme="objects")
    with place_at(old.keyed).open_writer() as writer:
        # Another machine's lock is not seen here.
        writer._lock.release()  # type: ignore[attr-defined]
        back(old.url, new, secret_of_words(WORDS))
        with pytest.raises(WriterConflict):
            writer.add_change(payment(5))


def test_living_writer_on_this_machine_is_refused(old: Old, new: Path) -> None:
    with place_at(old.keyed).open_writer(), pytest.raises(WriterConflict):
        back(old.url, new, secret_of_words(WORDS))
    assert not new.parent.exists()


def test_node_of_an_older_release_is_back_with_its_words(tmp_path: Path, new: Path) -> None:
    """Before 25.12, hsm_secret had the first 32 bytes of the words' seed."""
    half = seed_of(WORDS)[:32]
    old = Old(tmp_path, hsm_secret=half)
    back(old.url, new, secret_of_words(WORDS))
    require_whole(old, new)
    assert (new / "hsm_secret").read_bytes() == half


def test_node_is_back_with_its_key_file_and_the_secret_in_the_backup(
    tmp_path: Path, new: Path
) -> None:
    old = Old(tmp_path, wanted=Wanted(hsm_secret=True))
    done = back(old.keyed, new)
    require_whole(old, new)
    assert done.plan.secret is not None
    assert done.plan.secret.source == "backup"
    assert read_settings(str(new)).files == Wanted(hsm_secret=True)


def test_protected_secret_in_the_backup_is_checked_with_its_passphrase(
    tmp_path: Path, new: Path
) -> None:
    protected = file_of_words(WORDS, "TREZOR")
    node_id = node_id_of(seed_of(WORDS, "TREZOR"))
    old = Old(tmp_path, hsm_secret=protected, node_id=node_id, wanted=Wanted(hsm_secret=True))
    with pytest.raises(Locked, match="wrong passphrase"):
        back(old.keyed, new, None, "wrong")
    assert not new.parent.exists()
    back(old.keyed, new, None, "TREZOR")
    assert (new / "hsm_secret").read_bytes() == protected


def test_protected_secret_is_checked_with_the_words_that_unlock_the_backup(
    tmp_path: Path, new: Path
) -> None:
    protected = file_of_words(WORDS, "TREZOR")
    words = secret_of_words(WORDS, "TREZOR")
    node_id = node_id_of(words.content)
    old = Old(tmp_path, hsm_secret=protected, node_id=node_id, wanted=Wanted(hsm_secret=True))
    add_key(old.keyed, words)
    back(old.url, new, words)
    assert (new / "hsm_secret").read_bytes() == protected


def test_without_a_secret_at_hand_the_rest_is_back(old: Old, new: Path) -> None:
    done = back(old.keyed, new)
    assert done.plan.secret is None
    assert files_in(new.parent).keys() == WHOLE - {"bitcoin/hsm_secret"}


def test_secret_in_the_directory_stays_and_is_checked(old: Old, new: Path) -> None:
    new.mkdir(parents=True)
    (new / "hsm_secret").write_bytes(SECRET)
    with pytest.raises(Discontinuity, match="Wrong hsm_secret: the one in the directory is of"):
        back(old.keyed, new)
    assert files_in(new.parent).keys() == {"bitcoin/hsm_secret"}
    (new / "hsm_secret").write_bytes(file_of_words(WORDS))
    back(old.keyed, new)
    require_whole(old, new)


def test_secret_of_another_node_is_refused(old: Old, new: Path, tmp_path: Path) -> None:
    other = secret_of_words(OTHERS)
    add_key(old.keyed, other)
    with pytest.raises(Discontinuity, match="Wrong hsm_secret: the one that was given is of"):
        back(old.url, new, other)
    assert not new.parent.exists()
    assert [key.label for key in list_keys(old.url)] == ["hsm-secret", "hsm-secret-2", "key-file"]
    (tmp_path / "file").write_bytes(SECRET)
    with pytest.raises(Locked):
        back(old.url, new, secret_from(("hsm-secret", str(tmp_path / "file"))))


def test_plain_backup_brings_its_node_back_too(tmp_path: Path, new: Path) -> None:
    old = Old(tmp_path, encrypt=False, wanted=Wanted(keep=True))
    given = secret_from(("hsm-secret", str(old.directory / "hsm_secret")))
    back(old.url, new, given)
    assert files_in(new.parent).keys() == WHOLE - {"bitcoin/backup.key"}
    settings = read_settings(str(new))
    assert (settings.backend_url, settings.files) == (old.url, Wanted(keep=True))


def test_words_do_not_tell_the_form_of_the_secret_of_a_plain_backup(
    tmp_path: Path, new: Path
) -> None:
    old = Old(tmp_path, encrypt=False, wanted=Wanted(keep=True))
    with pytest.raises(Locked, match="generatehsm"):
        back(old.url, new, secret_of_words(WORDS))
    assert not new.parent.exists()


def test_backup_in_a_file_brings_the_database_back(tmp_path: Path, new: Path) -> None:
    old = Old(tmp_path, encrypt=False, scheme="file")
    done = back(old.url, new)
    assert files_in(new.parent).keys() == {"bitcoin/backup.lock", "bitcoin/lightningd.sqlite3"}
    assert done.plan.notices == ("This kind of backup has no place for the node's small files.",)


def test_settings_of_the_old_node_are_kept(old: Old, new: Path) -> None:
    lock = old.directory / "backup.lock"
    fields = json.loads(lock.read_text())
    wallet = old.base.parent / "elsewhere.sqlite3"
    lock.write_text(json.dumps(fields | {"on_gap": "halt", "wallet": str(wallet)}))
    from cln_backup.operations.node_files import keep

    with place_at(old.keyed).open_reader() as reader:
        assert reader.kept_files is not None
        keep(reader.kept_files, str(old.directory), Wanted())
    back(old.keyed, new)
    settings = read_settings(str(new))
    assert (settings.on_gap, settings.wallet) == (OnGap.HALT, str(wallet))
    assert_same_database(wallet, old.database)
    assert not (new / "lightningd.sqlite3").exists()


def test_other_files_of_the_same_names_stay(old: Old, new: Path) -> None:
    new.mkdir(parents=True)
    (new / "config").write_text("of this machine\n")
    (new / "ca.pem").write_bytes((old.directory / "ca.pem").read_bytes())
    done = back(old.url, new, secret_of_words(WORDS))
    assert (new / "config").read_text() == "of this machine\n"
    assert (new / "config.from-backup").read_text() == "config of the node\n"
    assert [file.taken for file in done.plan.files if file.taken] == [str(new / "config")]
    assert not (new / "ca.pem.from-backup").exists()


def test_files_of_tor_are_put_where_their_owner_can_take_them(tmp_path: Path, new: Path) -> None:
    tor = tmp_path / "tor"
    tor.mkdir()
    (tor / "hs_ed25519_secret_key").write_text("key")
    old = Old(tmp_path, wanted=Wanted(keep=True, tor_dir=str(tor)))
    done = back(old.keyed, new, secret_of_words(WORDS))
    assert (new / TOR_DIR / "hs_ed25519_secret_key").read_text() == "key"
    assert (new / TOR_DIR).stat().st_mode & 0o777 == 0o700
    assert read_settings(str(new)).files.tor_dir == str(tor)
    assert done.plan.settings.files.keep


def test_older_set_is_used_if_the_newest_is_damaged(old: Old, new: Path) -> None:
    newest = old.base.parent / "backup" / "files-0000000002"
    newest.write_bytes(b"CLNFIL2\n damaged")
    done = back(old.url, new, secret_of_words(WORDS))
    require_whole(old, new)
    assert done.plan.notices == (f"{newest} is damaged; an older set is used.",)


def _has_a_database(directory: Path) -> None:
    (directory / "lightningd.sqlite3").write_bytes(b"SQLite format 3\0")


def _has_another_lock(directory: Path) -> None:
    (directory / "backup.lock").write_text('{"backend_url": "dir:///another"}')


def _has_a_journal(directory: Path) -> None:
    (directory / "lightningd.sqlite3-journal").write_bytes(b"journal")


@pytest.mark.parametrize("prepare", [_has_a_database, _has_another_lock, _has_a_journal])
def test_directory_of_another_node_is_refused(prepare: Any, old: Old, new: Path) -> None:
    new.mkdir(parents=True)
    prepare(new)
    before = files_in(new)
    with pytest.raises(AlreadyExists):
        back(old.url, new, secret_of_words(WORDS))
    assert files_in(new) == before


def test_directory_that_is_no_network_directory_is_refused(old: Old, new: Path) -> None:
    with pytest.raises(NotFound, match="is not a network directory"):
        back(old.url, new.parent, secret_of_words(WORDS))
    assert not new.parent.exists()


def test_running_node_keeps_its_directory(old: Old, new: Path) -> None:
    new.mkdir(parents=True)
    with locking(new.parent / "lightningd-bitcoin.pid"), pytest.raises(NodeRunning):
        back(old.url, new, secret_of_words(WORDS))
    assert files_in(new) == {}


def test_every_failing_step_leaves_the_bare_machine_as_it_was(
    old: Old, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next attempt succeeds."""
    steps = 0
    real_publish = fsio.publish
    for failing in range(100):
        left = failing

        def step() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(28, "No space left on device")

        def publish(built: str, path: str, **options: Any) -> None:
            step()
            real_publish(built, path, **options)

        with monkeypatch.context() as patch:
            patch.setattr(fsio, "publish", publish)
            try:
                back(old.url, new, secret_of_words(WORDS))
                break
            except (BackupError, OSError):
                steps += 1
        assert not new.parent.exists()
        assert [key.label for key in list_keys(old.url)] == ["hsm-secret", "key-file"]
    assert steps == len(WHOLE) + 2  # and the new key slot, and the segment that fences
    require_whole(old, new)


_KILLED = """
import os, sys
from contextlib import nullcontext
from cln_backup.backends import place_at
from cln_backup.backends.events import ignore
from cln_backup.backends.secrets import secret_of_words
from cln_backup.operations import whole_node
from cln_backup.storage import fsio

url, directory, words, left = *sys.argv[1:4], int(sys.argv[4])
publish = fsio.publish

def killing(built, path, **options):
    global left
    left -= 1
    if left < 0:
        os._exit(9)
    publish(built, path, **options)

fsio.publish = killing
secret, own = whole_node.unlocking(url, secret_of_words(words))
with place_at(url).open_reader(secret=secret) as reader:
    made = whole_node.plan(reader, url, directory, own, input)
whole_node.restore_node(url, made, lambda _: nullcontext(None), secret=secret, on_event=ignore)
"""


@pytest.mark.parametrize("after", [4, 8, 10])
def test_killed_restore_is_run_again(after: int, old: Old, new: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, old.url, str(new), WORDS, str(after)], check=False
    )
    assert killed.returncode == 9
    found = files_in(new.parent)
    assert "bitcoin/lightningd.sqlite3" not in found
    back(old.url, new, secret_of_words(WORDS))
    for path in new.iterdir():
        if path.suffix.rstrip("0123456789") in (".restoring-", ".new-", ".unfinished-"):
            path.unlink()  # as any other write that was killed leaves it
    require_whole(old, new)


@pytest.mark.parametrize(
    "name",
    [
        "network/lightningd.sqlite3",
        "network/lightningd.sqlite3-wal",
        "network/lightningd.sqlite3-journal",
        "base/bitcoin/lightningd.sqlite3-wal",
        "base/bitcoin/hsm_secret",
        "base/bitcoin/backup.lock",
        "network/backup.lock/config",
        "network/backup.state",
        "base/lightningd-bitcoin.pid",
    ],
)
def test_kept_file_never_changes_what_the_restore_has_checked(
    name: str, tmp_path: Path, new: Path
) -> None:
    old = Old(tmp_path, encrypt=False)
    with place_at(old.url).open_reader() as reader:
        assert reader.kept_files is not None
        reader.kept_files.put(NodeFiles(1, (NodeFile(name, 0o600, 1, b"not the node's"),)))
    done = back(old.url, new)
    assert done.plan.notices == (f"{name} in the backup is not a small file, and is left there.",)
    assert files_in(new.parent).keys() == {"bitcoin/backup.lock", "bitcoin/lightningd.sqlite3"}
    assert_same_database(new / "lightningd.sqlite3", old.database)
