"""Whatever is opened by its path may be something that is not a regular file, or not readable."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import open_reader
from cln_backup.backends.secrets import secret_from
from cln_backup.backends.socket.token_file import read_token
from cln_backup.backends.writer import WriterLock
from cln_backup.model.errors import BackupError, StorageError
from cln_backup.node.outside import find_database, require_stopped
from cln_backup.node.settings import read_settings, read_state
from cln_backup.server.certificate import fingerprint
from cln_backup.server.nodes import read_nodes
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KINDS = ("fifo", "socket", "directory", "device")


def _make(kind: str, path: Path) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            before = os.getcwd()
            os.chdir(path.parent)  # the name of a socket is short
            try:
                sock.bind(path.name)
            finally:
                os.chdir(before)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_only_a_regular_file_is_opened(kind: str, writable: bool, tmp_path: Path) -> None:
    path = tmp_path / "strange"
    _make(kind, path)
    with pytest.raises(StorageError, match=r"Cannot read it .*/strange: "):
        fsio.open_existing(str(path), writable=writable, op="read it")


def _base(directory: Path) -> object:
    return open_reader(f"dir://{directory}")


READERS: dict[str, Callable[[Path], object]] = {
    "backup.lock": lambda directory: read_settings(str(directory)),
    "backup.state": lambda directory: read_state(str(directory)),
    "backup.key": lambda directory: secret_from(("key-file", str(directory / "backup.key"))),
    "hsm_secret": lambda directory: secret_from(("hsm-secret", str(directory / "hsm_secret"))),
    "words": lambda directory: secret_from(("passphrase-file", str(directory / "words"))),
    "token": lambda directory: read_token(str(directory / "token")),
    "nodes": lambda directory: read_nodes(str(directory / "nodes")),
    "server.crt": lambda directory: fingerprint(str(directory / "server.crt")),
    "node.bkp": lambda directory: open_reader(f"file://{directory}/node.bkp"),
    "node.writer": lambda directory: WriterLock("node", str(directory / "node.writer")),
    "base-0000000001-0000000001": _base,
    "lightningd.sqlite3": lambda directory: find_database(str(directory), None),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READERS)
def test_special_file_in_the_place_of_any_other_is_refused_and_not_waited_for(
    name: str, kind: str, tmp_path: Path
) -> None:
    _make(kind, tmp_path / name)
    with pytest.raises(BackupError, match=f"{name}|/dev/zero"):
        READERS[name](tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_pid_file_that_is_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    directory = tmp_path / "regtest"
    directory.mkdir()
    os.mkfifo(tmp_path / "lightningd-regtest.pid")
    require_stopped(str(directory), None)


@contextlib.contextmanager
def _unprivileged() -> Iterator[None]:
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize(
    "name", ["backup.lock", "token", "nodes", "node.bkp", "lightningd.sqlite3", "base-…"]
)
def test_file_in_a_directory_that_cannot_be_entered_is_not_said_to_be_missing(
    name: str, tmp_path: Path
) -> None:
    directory = tmp_path / "closed"
    directory.mkdir()
    (directory / name).write_text("x")
    directory.chmod(0)
    try:
        with _unprivileged(), pytest.raises(StorageError, match="Permission denied"):
            READERS.get(name, _base)(directory)
    finally:
        directory.chmod(0o700)


def test_database_that_cannot_be_read_is_not_said_to_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "lightningd.sqlite3"
    path.write_text("x")
    path.chmod(0)
    with _unprivileged(), pytest.raises(StorageError, match="Permission denied"):
        find_database(str(tmp_path), None)
