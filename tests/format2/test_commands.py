"""The commands that have to do with the directory, as an operator runs them."""

from __future__ import annotations

import itertools
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.socket.writer import SocketWriter
from cln_backup.model.change import Change
from cln_backup.model.errors import AlreadyExists, Discontinuity, Interrupted, WriterConflict
from cln_backup.operations.copy import copy
from tests.format2.small import KINDS, SNAPSHOT, url_of
from tests.histories import (
    append,
    assert_same_database,
    build_database,
    payment,
    payments,
    prepared,
    started_node,
    take_over,
    told,
    told_by,
)
from tests.socket.serving import server_here


def _cli(*arguments: str, code: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "cln_backup.cli.commands", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr + done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_encrypted_backup_from_init_to_restore(tmp_path: Path) -> None:
    node, backup = tmp_path / "node", str(tmp_path / "backup")
    node.mkdir()
    build_database(node / "lightningd.sqlite3", started_node())
    (node / "hsm_secret").write_bytes(bytes(range(32)))
    (tmp_path / "passphrase").write_text("four words on paper\n")
    _cli("init", "--encrypt", "--lightning-dir", str(node), backup)
    url = json.loads((node / "backup.lock").read_text())["backend_url"]
    assert url == f"dir://{backup}?key-file={node}/backup.key"
    append(url, payments(4, 9))
    assert _cli("status", backup, code=17)["error"]["type"] == "Locked"
    by_node, by_words = ("--hsm-secret", f"{node}/hsm_secret"), ("--passphrase-file",)
    _cli("key", "add", *by_node, "--new-passphrase-file", f"{tmp_path}/passphrase", backup)
    keys = _cli("key", "list", backup)["keys"]
    assert [key["label"] for key in keys] == ["hsm-secret", "key-file", "passphrase"]
    assert _cli("verify", "--no-replay", *by_node, backup)["good"]
    for label in ("hsm-secret", "key-file"):
        _cli("key", "remove", backup, label)
    assert _cli("key", "remove", backup, "passphrase", code=17)["error"]["type"] == "Locked"
    restored = str(tmp_path / "restored.sqlite3")
    done = _cli("restore", *by_words, f"{tmp_path}/passphrase", backup, restored)
    assert done["version"] == 8
    for path in (tmp_path / "backup").iterdir():
        content = path.read_bytes()
        assert b"SQLite format" not in content
        assert b"payments" not in content


def test_key_for_a_backup_that_is_not_encrypted_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(bytes(range(32)))
    create_backend(f"dir://{tmp_path}/backup", None)
    said = _cli("status", "--key-file", f"{tmp_path}/key", f"{tmp_path}/backup", code=8)
    assert "not encrypted" in said["error"]["message"]


def test_copy_between_the_formats(tmp_path: Path) -> None:
    create_backend(f"file://{tmp_path}/old", None)
    append(f"file://{tmp_path}/old", [*started_node(), *payments(4, 30)])
    assert _cli("copy", f"{tmp_path}/old", f"{tmp_path}/new")["version"] == 29
    _cli("copy", f"{tmp_path}/new", f"file://{tmp_path}/back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "old").read_bytes()
    assert _cli("copy", f"{tmp_path}/old", f"{tmp_path}/new", code=5)


def _drop_head_of_new(url: str) -> None:
    create_backend(url, None)
    append(url, started_node())
    with open_writer(url) as backend:
        backend.rewind()


def test_dropped_change_is_listed(tmp_path: Path) -> None:
    url = f"dir://{tmp_path}/backup"
    _drop_head_of_new(url)
    line = _cli("log", "--dropped", url)
    assert (line["version"], line["kind"]) == (3, "transaction")


def test_dropped_changes_that_lie_elsewhere_are_not_said_to_be_none(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    _drop_head_of_new(url)
    error = _cli("log", "--dropped", url, code=3)["error"]
    assert "NAME.dropped-VERSION" in error["message"]
    assert (tmp_path / "node.bkp.dropped-3").exists()


def test_backup_that_is_written_to_is_called_by_its_own_path(tmp_path: Path) -> None:
    """The message named a file that does not exist."""
    url = f"dir://{tmp_path}/node"
    create_backend(url, None)
    with open_writer(url), pytest.raises(WriterConflict) as found:
        open_writer(url)
    assert str(found.value).startswith(f"{tmp_path}/node is being written by process")


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_changes_outlive_every_compaction(kind: str, tmp_path: Path) -> None:
    url = url_of(kind, tmp_path)
    create_backend(url, None)
    append(url, started_node())
    stale = [[payment(4, "once")], [payment(4, "twice")], [Change(9, SNAPSHOT, None)]]
    for (change,) in stale:
        append(url, [change])
        with open_writer(url) as backend:
            backend.rewind()
    append(url, payments(4, 7))
    for version in (5, 6):
        with open_writer(url) as writer, open_reader(url) as reader:
            take_over(
                writer, prepared(reader, Change(version - 1, SNAPSHOT, None), foreign_keys=True)
            )
            writer.add_change(payments(version + 2, version + 3)[0])
    with open_reader(url) as backend:
        assert told(backend.dropped_changes()) == told([change for (change,) in stale])
        backend.check()
    names = sorted(path.name for path in (tmp_path / "node").glob("dropped-*"))
    assert names == ["dropped-0000000004", "dropped-0000000004-2", "dropped-0000000009"]


def test_generations_are_kept_as_the_url_says(tmp_path: Path) -> None:
    for keep, left in ((0, 1), (1, 2), (2, 3)):
        url = f"dir://{tmp_path}/{keep}?keep={keep}"
        create_backend(url, None)
        history = started_node()
        append(url, history)
        for version in range(4, 8):
            with open_writer(url) as writer:
                writer.add_change(payments(version, version + 1)[0])
                with open_reader(url) as reader:
                    base = Change(version - 1, SNAPSHOT, None)
                    take_over(writer, prepared(reader, base, foreign_keys=True))
        assert len(list((tmp_path / str(keep)).glob("base-*"))) == left
        assert told_by(url) == told([base, payments(7, 8)[0]])
    kept = f"dir://{tmp_path}/days?keep-days=1"
    create_backend(kept, None)
    append(kept, history)
    with open_writer(kept) as writer, open_reader(kept) as reader:
        take_over(writer, prepared(reader, Change(2, SNAPSHOT, None), foreign_keys=True))
    assert len(list((tmp_path / "days").glob("base-*"))) == 2


def test_what_lies_beside_an_encrypted_backup_does_not_tell_whose_it_is(tmp_path: Path) -> None:
    url, node_id = url_of("encrypted", tmp_path), "02" + "11" * 32
    create_backend(url, None)
    with open_writer(url) as backend:
        backend.claim(node_id)
        for change in started_node():
            backend.add_change(change)
    for path in (tmp_path / "node").iterdir():
        content = path.read_bytes()
        for told_by_it in (node_id, platform.node(), Path(sys.argv[0]).name, "data_version"):
            # A short name, such as `vm`, is by chance among random bytes.
            if len(told_by_it) > 4 or path.name == "backup.writer":
                assert told_by_it.encode() not in content, path.name
    note = tmp_path / "node" / "backup.writer"
    with open_writer(url) as backend:
        backend.claim(node_id)
        with pytest.raises(Discontinuity, match=node_id):
            backend.claim("03" + "22" * 32)
    note.write_text(json.dumps({"node_id": "00" * 81}))
    with open_writer(url) as backend, pytest.raises(Discontinuity):
        backend.claim(node_id)


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_that_reads_a_directory(kind: str, tmp_path: Path) -> None:
    url = url_of(kind, tmp_path)
    create_backend(url, None)
    history = [*started_node(), *payments(4, 30)]
    append(url, history)
    status = _cli("status", url)
    assert (status["version"], status["version_count"]) == (29, len(history))
    assert status["backend_url"] == url
    assert _cli("verify", url)["replayed"]
    assert _cli("verify", "--no-replay", url)["version"] == 29
    assert _cli("restore", "--to", "7", url, str(tmp_path / "seven"))["version"] == 7
    kept = [change for change in history if change.version <= 7]
    assert_same_database(tmp_path / "seven", build_database(tmp_path / "expected", kept))
    done = _cli("compact", "--force", url)
    assert done["after"]["version_count"] == 2
    _cli("restore", url, str(tmp_path / "restored"))
    assert_same_database(tmp_path / "restored", build_database(tmp_path / "all", history))


@pytest.mark.parametrize("kind", KINDS)
def test_generation_that_was_kept_is_read_without_the_newer_base(kind: str, tmp_path: Path) -> None:
    """The operator's repair if the newest base is damaged: move it away."""
    url = url_of(kind, tmp_path)
    joint = "&" if "?" in url else "?"
    create_backend(url, None)
    history = [*started_node(), *payments(4, 30)]
    append(url, history)
    _cli("compact", "--force", f"{url}{joint}keep=1")
    append(f"{url}{joint}keep=1", [payment(30)])
    newest = max((tmp_path / "node").glob("base-*"))
    newest.write_bytes(newest.read_bytes()[:-40])
    said = _cli("verify", "--no-replay", url, code=8)
    assert newest.name in said["error"]["message"]
    newest.rename(tmp_path / "damaged")
    assert told_by(url) == told([*history, payment(30)])
    assert _cli("verify", url)["version"] == 30


def test_what_a_killed_writer_was_building_goes_with_the_next_one(tmp_path: Path) -> None:
    url = url_of("plain", tmp_path)
    create_backend(url, None)
    with open_writer(url) as writer:
        for purpose in ("snapshot", "drop", "compaction"):
            (tmp_path / "node" / f"building.{purpose}-1").write_bytes(bytes(100))
        writer.discard()
    left = sorted(path.name for path in (tmp_path / "node").glob("building.*"))
    assert left == ["building.drop-1", "building.snapshot-1"]
    append(url, started_node())
    assert not list((tmp_path / "node").glob("building.*"))


def test_secrets_of_one_kind_get_names_of_their_own(tmp_path: Path) -> None:
    url = url_of("encrypted", tmp_path)
    create_backend(url, None)
    for label in ("key-file-2", "key-file-3"):
        new = str(tmp_path / f"{label}.key")
        assert _cli("key", "add", "--new-key-file", new, url) == {"added": label}
        assert _cli("status", "--key-file", new, f"dir://{tmp_path}/node")["version"] == 0
    said = _cli("key", "add", "--new-key-file", new, "--name", "key-file", url, code=5)
    assert "exists" in said["error"]["message"]


def test_copies_through_every_scheme(tmp_path: Path) -> None:
    history = [*started_node(), *payments(4, 30)]
    old, plain = f"file://{tmp_path}/old", f"dir://{tmp_path}/plain"
    create_backend(old, None)
    append(old, history)
    with server_here() as server:
        places = [old, plain, url_of("encrypted", tmp_path), server.add(f"dir://{tmp_path}/served")]
        for source, target in itertools.pairwise([*places, f"file://{tmp_path}/back"]):
            assert _cli("copy", source, target)["version"] == 29
    assert (tmp_path / "back").read_bytes() == (tmp_path / "old").read_bytes()


def test_copy_to_a_server_that_was_stopped_says_that_it_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copied files open as a backup of an older version, and nothing else would show it."""
    source = f"dir://{tmp_path}/backup"
    create_backend(source, None)
    append(source, [*started_node(), *payments(4, 30)])
    kind = SocketWriter
    add = kind.add_change

    def stopped(self: SocketWriter, change: Change) -> None:
        if change.version == 20:
            raise Interrupted("Stopped. The unfinished result was removed.")
        add(self, change)

    monkeypatch.setattr(kind, "add_change", stopped)
    with server_here() as server:
        target = server.add(f"dir://{tmp_path}/copy")
        with pytest.raises(Interrupted, match=r"Stopped\. THE COPY AT .* IS INCOMPLETE") as found:
            copy(source, target)
        assert "removed" not in str(found.value)
        assert told_by(target)[-1].version == 19


def test_copy_at_a_place_that_is_taken_says_nothing_of_a_copy(tmp_path: Path) -> None:
    source = f"dir://{tmp_path}/backup"
    create_backend(source, None)
    append(source, started_node())
    with pytest.raises(AlreadyExists) as found:
        copy(source, source)
    assert "IS INCOMPLETE" not in str(found.value)


def test_copy_that_is_not_encrypted_is_noted(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    sealed = f"dir://{tmp_path}/backup?key-file={key}"
    create_backend(sealed, None)
    append(sealed, started_node())
    for target, noted in (
        (f"dir://{tmp_path}/plain", True),
        (f"file://{tmp_path}/file", True),
        (f"dir://{tmp_path}/sealed?key-file={key}", False),
    ):
        command = [sys.executable, "-m", "cln_backup.cli.commands", "copy", sealed, target]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert ("The copy is not encrypted" in done.stderr) == noted


def test_keys_of_a_backup_that_has_none(tmp_path: Path) -> None:
    create_backend(f"dir://{tmp_path}/backup", None)
    command = [sys.executable, "-m", "cln_backup.cli.commands", "key", "list", f"{tmp_path}/backup"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "The backup is not encrypted, so it has no key slots.\n"
    said = _cli("key", "remove", f"{tmp_path}/backup", "key-file", code=17)["error"]["message"]
    assert "not encrypted" in said
