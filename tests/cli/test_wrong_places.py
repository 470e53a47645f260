"""Places that are named where they cannot be meant: refused, and nothing is made."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, redacted
from cln_backup.backends.socket.place import take_over
from cln_backup.model import errors
from cln_backup.model.errors import (
    AlreadyExists,
    BackupError,
    BadSettings,
    BadUrl,
    Damaged,
    NotFound,
    StorageError,
)
from cln_backup.node.settings import read_settings
from cln_backup.operations.copy import copy
from cln_backup.operations.initialize import initialize, take_snapshot
from cln_backup.operations.keyring import key_file
from cln_backup.operations.restore import restore, target_path
from cln_backup.replay.replica import copy_database
from cln_backup.server.command import Options, serve
from cln_backup.server.nodes import read_nodes
from tests.cli.test_wrong_input import Place, place, run
from tests.histories import append, build_database, started_node

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["place"]


# inside a backup

INSIDE: dict[str, Callable[[Place], object]] = {
    "restore": lambda place: target_path(str(place.encrypted)),
    "restore below": lambda place: target_path(f"{place.encrypted}/below/file"),
    "copy into itself": lambda place: copy(
        f"dir://{place.encrypted}?key-file={place.encrypted}/../key",
        f"dir://{place.encrypted}/copy",
    ),
    "copy to a file in it": lambda place: copy(
        f"file://{place.file}", f"file://{place.encrypted}/node.bkp"
    ),
    "init": lambda place: create_backend(f"dir://{place.encrypted}/new", None),
    "init of a file": lambda place: create_backend(f"file://{place.encrypted}/new", None),
    "key file": lambda place: key_file(f"{place.encrypted}/the.key").__enter__(),
}


@pytest.mark.parametrize("what", INSIDE)
def test_nothing_is_made_inside_a_backup(what: str, place: Place) -> None:
    """`restore enc enc` put a plain database into the encrypted backup."""
    (place.encrypted / "below").mkdir()
    before = place.contents()
    with pytest.raises(AlreadyExists, match="is inside the backup"):
        INSIDE[what](place)
    assert place.contents() == before


def test_restore_of_a_backup_into_its_own_directory_is_refused(place: Place) -> None:
    before = place.contents()
    key = place.encrypted.with_name("key")
    ended = run("restore", "--key-file", key, place.encrypted, place.encrypted)
    assert ended.code == errors.AlreadyExists.exit_code
    assert place.contents() == before


def test_link_into_a_backup_is_inside_it(place: Place) -> None:
    link = place.node.parent / "link"
    link.symlink_to(place.encrypted)
    with pytest.raises(AlreadyExists, match="is inside the backup"):
        target_path(str(link))


# what is named as a backup


def _dir_url(path: Path) -> str:
    return f"dir://{path}"


def test_what_is_not_a_backup_is_said_to_be_what_it_is(place: Place) -> None:
    """A database was "damaged at byte 0, version 1397836905"."""
    database = place.node / "lightningd.sqlite3"
    for url in (f"file://{database}",):
        with pytest.raises(NotFound, match="is a SQLite database, not a backup"):
            open_reader(url)
    with pytest.raises(
        NotFound, match=f"is a file, not a directory as a dir: .* name it file://{place.file}"
    ):
        open_reader(f"dir://{place.file}")
    with pytest.raises(BadUrl, match=f"It is a dir: backup; name it dir://{place.encrypted}"):
        open_reader(f"file://{place.encrypted}")
    with pytest.raises(NotFound, match=f"but one at {place.encrypted}"):
        open_reader(f"dir://{place.encrypted.parent}")


@pytest.mark.parametrize("start", ["base-", "log-", "key-"])
def test_file_of_a_directory_is_said_to_be_one(start: str, place: Place) -> None:
    for path in place.encrypted.glob(f"{start}*"):
        with pytest.raises(NotFound, match=f"is a file of a dir: .*: dir://{place.encrypted}"):
            open_reader(f"file://{path}")


# the node's database


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE moz_places (id)", "CREATE TABLE chain_events (id); CREATE TABLE vars (name)"],
    ids=["browser", "bookkeeper"],
)
@pytest.mark.parametrize("command", ["init", "snapshot"])
def test_database_of_another_program_is_not_taken_for_the_nodes(
    command: str, statement: str, place: Place
) -> None:
    database = place.node / "lightningd.sqlite3"
    url, node = f"dir://{place.node.parent}/new", str(place.node)
    if command == "snapshot":
        initialize(url, node)
    database.unlink()
    with sqlite3.connect(database) as connection:
        connection.executescript(statement)
    connection.close()
    before = place.contents()
    with pytest.raises(NotFound, match="is a SQLite database, but not lightningd's"):
        _ = initialize(url, node) if command == "init" else take_snapshot(node)
    assert set(place.contents()) - set(before) <= {f"{place.node.parent}/new/spare"}


def test_locked_database_is_said_to_be_locked(place: Place, tmp_path: Path) -> None:
    """SQLite's own message was "not an error"."""
    database = place.node / "lightningd.sqlite3"
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.execute('BEGIN EXCLUSIVE'); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, database], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(StorageError, match="locked"):
            copy_database(str(database), str(tmp_path / "copy"))


def test_database_that_fails_in_the_middle_of_its_copy_says_why(tmp_path: Path) -> None:
    database = tmp_path / "lightningd.sqlite3"
    build_database(database, started_node())
    content = bytearray(database.read_bytes())
    content[100:108] = b"\xff" * 8  # the head of the first page
    database.write_bytes(content)
    with pytest.raises((StorageError, NotFound)) as failed:
        copy_database(str(database), str(tmp_path / "copy"))
    assert "not an error" not in str(failed.value)


@pytest.mark.parametrize("network", ["bitcoin", "regtest"])
def test_directory_above_the_network_directory_is_refused_with_its_name(
    network: str, tmp_path: Path
) -> None:
    above = tmp_path / "above"
    (above / network).mkdir(parents=True)
    with pytest.raises(NotFound, match=f"such as {above}/{network}"):
        target_path(str(above))
    with pytest.raises(NotFound, match=f"{above}/{network}. Use that one"):
        initialize(f"dir://{tmp_path}/new", str(above))
    assert target_path(f"{above}/lightningd.sqlite3") == f"{above}/lightningd.sqlite3"
    assert os.listdir(above) == [network]


def test_network_directory_of_a_name_of_its_own_is_found_by_what_is_in_it(place: Place) -> None:
    os.rename(place.node, place.node.with_name("mine"))
    with pytest.raises(NotFound, match="lightning/mine"):
        target_path(str(place.node.parent))


# a server, and settings


def test_server_of_a_server_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadUrl, match="a server serves file: and dir: backups of its own machine"):
        serve("socket:127.0.0.1:1", "127.0.0.1:0", Options())
    nodes = tmp_path / "nodes"
    nodes.write_text(f"alice socket:127.0.0.1:1 {'0' * 64}\n")
    with pytest.raises(BadUrl, match="a server serves"):
        read_nodes(str(nodes))


@pytest.mark.parametrize(
    ("content", "url"),
    [
        ("/mnt/backup/node\n", "dir:///mnt/backup/node"),
        ('"/mnt/backup/node"', "dir:///mnt/backup/node"),
        ("file:///mnt/node.bkp", "file:///mnt/node.bkp"),
        ("socket:127.0.0.1:8700\n", "socket:127.0.0.1:8700"),
    ],
)
def test_lock_file_of_a_path_alone_says_how_to_write_it(
    content: str, url: str, tmp_path: Path
) -> None:
    (tmp_path / "backup.lock").write_text(content)
    with pytest.raises(BadSettings, match=f'Write it as: {{"backend_url": "{url}"}}'):
        read_settings(str(tmp_path))


@pytest.mark.parametrize("fields", ['{"backend_url": ""}', '{"backend_url": "x", "wallet": ""}'])
def test_lock_file_with_an_empty_place_is_refused(fields: str, tmp_path: Path) -> None:
    (tmp_path / "backup.lock").write_text(fields)
    with pytest.raises(BadSettings, match="must be of the form"):
        read_settings(str(tmp_path))


# passwords in URLs


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgres://me:hunter2@db/node?password=hunter2", "postgres://me@db/node?password=…"),
        ("socket:me:hunter2@host:8700", "socket:me@host:8700"),
        ("socket:h:1?proxy=socks5:me:hunter2@p:1", "socket:h:1?proxy=socks5:me@p:1"),
        ("socket:h:1?token=hunter2&node=a", "socket:h:1?token=…&node=a"),
        ("dir:///a?passphrase=hunter2&keep=1", "dir:///a?passphrase=…&keep=1"),
        ("dir:///me:you@home/b?key-file=/k", "dir:///me:you@home/b?key-file=/k"),
        ("me:hunter2@host", "me@host"),
    ],
)
def test_password_in_a_url_is_not_shown(url: str, shown: str, place: Place) -> None:
    assert redacted(url) == shown
    asked: tuple[Callable[[str], object], ...] = (
        open_reader,
        lambda url: create_backend(url, None),
        lambda url: copy(f"file://{place.file}", url),
        take_over,
    )
    for ask in asked if "hunter2" in url else ():
        with pytest.raises(BackupError) as refused:
            ask(url)
        assert "hunter2" not in str(refused.value)


def test_wallet_that_is_not_sqlites_is_refused_by_name(place: Place) -> None:
    wallet = "postgres://me:hunter2@db/node?password=hunter2"
    new = f"{place.node.parent}/new"
    ended = run("init", "--wallet", wallet, "--lightning-dir", place.node, new)
    assert ended.code == BadSettings.exit_code
    assert "The wallet postgres://me@db/node?password=… is not a SQLite database" in ended.err
    assert "hunter2" not in ended.err


def test_restore_still_goes_to_a_directory_of_another_kind(place: Place, tmp_path: Path) -> None:
    (tmp_path / "other" / "things").mkdir(parents=True)
    with open_reader(f"file://{place.file}") as backend:
        done = restore(backend, str(tmp_path / "other"))
    assert done.path == f"{tmp_path}/other/lightningd.sqlite3"
    with pytest.raises(BackupError):
        append(f"file://{done.path}", [])


@pytest.mark.parametrize("content", [b"", b"hello\n", bytes(range(256)) * 8])
def test_any_other_file_is_not_only_said_to_be_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(Damaged, match=r"is not a backup in .*, or is damaged at byte"):
        open_reader(f"file://{tmp_path}/file")


def test_network_directory_is_not_only_said_to_hold_no_backup(place: Place) -> None:
    with pytest.raises(NotFound, match="is a node's network directory, not a backup"):
        open_reader(f"dir://{place.node}")


def test_missing_network_directory_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="which is not a directory"):
        take_snapshot(f"{tmp_path}/none")
