"""A standby that follows a node's backup, and is promoted to be the node."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from tests import programs
from tests.histories import append, payment, payments, started_node
from tests.plugin.home import CAPTURES, Home
from tests.socket.serving import server_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))


class Standby:
    """`backup-cli standby --json` as a process."""

    def __init__(self, url: str, directory: Path) -> None:
        self.process = programs.start(
            *("backup-cli", "standby", "--json", url, directory),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until(self, version: int) -> dict[str, Any]:
        """Waits until the standby is at the backup's head, at this version or later."""
        while True:
            state = self.next()
            if state["at_head"] and state["version"] >= version:
                return state

    def until_trouble(self) -> dict[str, Any]:
        while (state := self.next())["trouble"] is None:
            pass
        found: dict[str, Any] = state["trouble"]
        return found

    def next(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()
        state: dict[str, Any] = json.loads(line)
        return state

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Stops it; returns its exit code, and what it complained of."""
        self.process.send_signal(number)
        errors = str(self.process.communicate()[1])
        return int(self.process.returncode), errors


@contextlib.contextmanager
def _following(url: str, directory: Path) -> Iterator[Standby]:
    standby = Standby(url, directory)
    try:
        yield standby
    finally:
        if standby.process.poll() is None:
            standby.process.kill()
            standby.process.communicate()


def _backup(tmp_path: Path, scheme: str = "dir") -> str:
    url = f"{scheme}://{tmp_path}/backup"
    create_backend(url, None)
    append(url, [*started_node(), *payments(4, 10)])
    return url


def _new_machine(tmp_path: Path, url: str) -> Home:
    """A node's home on another machine, with nothing in it."""
    new = Home(tmp_path / "new", "dir")
    new.url = url
    return new


@pytest.mark.parametrize("kind", ["dir-encrypted", "socket"])
def test_promoted_while_the_old_node_runs(tmp_path: Path, kind: str) -> None:
    """The old node halts at its next change, nothing answered is lost, the new one continues."""
    with contextlib.ExitStack() as stack:
        old = Home(tmp_path / "old", "dir" if kind == "socket" else kind)
        if kind == "socket":
            old.url = stack.enter_context(server_process(old.url)).url
        old.init()
        new = _new_machine(tmp_path, old.url)
        node = stack.enter_context(old.start(*_ROUTER, "--rate", "40"))
        with _following(old.url, new.directory) as standby:
            standby.until(40)
            assert standby.end() == (0, "")
        assert not new.database.exists()
        if kind != "socket":  # as on another machine, to which the lock does not reach
            (old.backup / "backup.writer").unlink()
        assert node.poll() is None
        said = new.cli("standby", "--promote", "--original", old.url, str(new.directory))
        promoted_at = int(said.partition("at data version ")[2].partition(",")[0].split()[0])
        old.end(node, code=None)
        assert "failed db_write" in old.stderr
        assert "lost the right to write" in old.log() or "taken over" in old.log()
        answered = old.restored()
        shutil.copyfile(new.database, tmp_path / "promoted.sqlite3")
        assert _version(tmp_path / "promoted.sqlite3") == promoted_at == _version(answered)
        old.require_same(tmp_path / "promoted.sqlite3")
        assert _version(old.database) in (promoted_at, promoted_at - 1)

        new.run(*_ROUTER, "--calls", "60")
        assert _version(new.database) > promoted_at
        new.require_same(new.database)
        # The old node never continues from its state.
        report = old.run(*_ROUTER, code=None)
        assert report["committed"] == 0


def _version(database: Path) -> int:
    import sqlite3

    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT intval FROM vars WHERE name = 'data_version'").fetchall()
    return int(rows[0][0])


@pytest.mark.parametrize("scheme", ["dir", "file"])
def test_continues_after_any_end(tmp_path: Path, scheme: str) -> None:
    url = _backup(tmp_path, scheme)
    directory = tmp_path / "standby"
    with _following(url, directory) as standby:
        standby.until(9)
        append(url, payments(10, 14))
        standby.until(13)
        standby.process.kill()
    inode = (directory / "backup.replica" / "replica.sqlite3").stat().st_ino
    append(url, payments(14, 20))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with _following(url, directory) as standby:
            standby.until(19)
            assert standby.end(number) == (0, "")
    assert (directory / "backup.replica" / "replica.sqlite3").stat().st_ino == inode
    assert oct(directory.stat().st_mode)[-3:] == "700"
    assert [path.name for path in directory.iterdir()] == ["backup.replica"]


def test_follows_a_server_that_is_away_for_a_while(tmp_path: Path) -> None:
    with (
        server_process(_backup(tmp_path)) as server,
        _following(f"{server.url}?deadline=1", tmp_path / "standby") as standby,
    ):
        standby.until(9)
        server.kill()
        assert standby.until_trouble()["type"] == "Unreachable"
        server.start()
        append(server.url, payments(10, 12))
        standby.until(11)


def test_copy_that_is_incomplete_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """As rsync leaves it, which copies file after file."""
    url = _backup(tmp_path)
    append(url, payments(10, 12))
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "backup", copy)
    last = max(copy.glob("log-*"))
    last.rename(tmp_path / "later")
    with _following(f"dir://{copy}", tmp_path / "standby") as standby:
        assert standby.until_trouble()["type"] == "IncompleteCopy"
        refused = programs.run(
            "standby", "--promote", "--original", f"dir://{copy}", tmp_path / "other"
        )
        assert refused.returncode == 4
        (tmp_path / "other").mkdir()
        refused = programs.run(
            "standby", "--promote", "--original", f"dir://{copy}", tmp_path / "other"
        )
        assert refused.returncode == 20
        assert not (tmp_path / "other" / "lightningd.sqlite3").exists()
        (tmp_path / "later").rename(last)
        standby.until(11)


def test_dropped_change_and_compaction_are_followed(tmp_path: Path) -> None:
    url = _backup(tmp_path)
    with _following(url, tmp_path / "standby") as standby:
        standby.until(9)
        with open_writer(url) as writer:
            writer.rewind()
            writer.add_change(payment(9, "another"))
            writer.add_change(payment(10))
        standby.until(10)
        assert programs.run("compact", "--force", url).returncode == 0
        append(url, payments(11, 13))
        standby.until(12)
        assert standby.end() == (0, "")
    promoted = tmp_path / "standby" / "lightningd.sqlite3"
    assert (
        programs.run("standby", "--promote", "--original", url, tmp_path / "standby").returncode
        == 0
    )
    home = Home(tmp_path / "unused")
    home.url = url
    home.require_same(promoted)


def _refused(code: int, phrase: str, *arguments: object) -> None:
    done = programs.run("standby", *arguments)
    assert done.returncode == code, done.stderr
    assert phrase in done.stderr


def test_refused_before_anything_is_changed(tmp_path: Path) -> None:
    url = _backup(tmp_path)
    directory = tmp_path / "standby"
    _refused(4, "There is no backup", f"dir://{tmp_path}/nowhere", directory)
    _refused(4, "does not exist", url, tmp_path / "no" / "parent")
    _refused(5, "inside the backup", url, tmp_path / "backup" / "standby")
    _refused(4, "does not exist", "--promote", "--original", url, tmp_path / "nowhere")
    with _following(url, directory) as standby:
        standby.until(9)
        _refused(7, "open", url, directory)
        _refused(7, "Stop the standby first", "--promote", "--original", url, directory)
    (directory / "backup.lock").write_text('{"backend_url": "file:///another"}')
    _refused(5, "names another backup", "--promote", "--original", url, directory)
    (directory / "backup.lock").unlink()
    (directory / "config").write_text("wallet=sqlite3:///elsewhere/wallet.sqlite3\n")
    _refused(12, "/elsewhere/wallet.sqlite3", "--promote", "--original", url, directory)
    (directory / "config").unlink()
    (directory / "lightningd.sqlite3").write_bytes(b"")
    _refused(5, "is a node's directory", url, directory)
    _refused(5, "never overwrites", "--promote", "--original", url, directory)


def test_never_promoted_without_the_backup(tmp_path: Path) -> None:
    """Whatever the replica has: newer changes may have been answered."""
    url = _backup(tmp_path)
    directory = tmp_path / "standby"
    with _following(url, directory) as standby:
        standby.until(9)
    (tmp_path / "backup").rename(tmp_path / "elsewhere")
    _refused(4, "There is no backup", "--promote", "--original", url, directory)
    create_backend(url, None)
    _refused(4, "the backup is empty", "--promote", "--original", url, directory)
    assert [path.name for path in directory.iterdir()] == ["backup.replica"]


@pytest.mark.parametrize("scheme", ["dir", "file"])
def test_living_node_whose_lock_shows_keeps_its_backup(tmp_path: Path, scheme: str) -> None:
    url = _backup(tmp_path, scheme)
    (tmp_path / "standby").mkdir()
    with open_writer(url) as writer:
        _refused(7, "is being written by", "--promote", "--original", url, tmp_path / "standby")
        writer.add_change(payment(10))
    assert not (tmp_path / "standby" / "lightningd.sqlite3").exists()
    done = programs.run("standby", "--promote", "--original", "--json", url, tmp_path / "standby")
    assert json.loads(done.stdout)["version"] == 10


def test_promoted_database_is_the_replica_itself(tmp_path: Path) -> None:
    """So it takes the space of one database, at every moment."""
    url = _backup(tmp_path)
    directory = tmp_path / "standby"
    with _following(url, directory) as standby:
        standby.until(9)
    inode = (directory / "backup.replica" / "replica.sqlite3").stat().st_ino
    (directory / "hsm_secret").write_bytes(bytes(32))
    done = programs.run("standby", "--promote", "--original", url, directory)
    assert done.returncode == 0
    assert "hsm_secret" not in done.stdout
    assert "old node is off" in done.stdout
    database = directory / "lightningd.sqlite3"
    assert database.stat().st_ino == inode
    assert sorted(path.name for path in directory.iterdir()) == [
        "backup.lock", "hsm_secret", "lightningd.sqlite3",
    ]  # fmt: skip
    header = database.read_bytes()[:100]
    assert header[18:20] == b"\x01\x01"  # no WAL
    assert header[60:64] == header[68:72] == bytes(4)  # nothing marks it as a replica
    assert json.loads((directory / "backup.lock").read_text()) == {"backend_url": url}
    with open_reader(url) as reader:
        assert reader.version == _version(database) == 9


def test_server_with_one_client_at_a_time_is_not_followed(tmp_path: Path) -> None:
    """Neither by a standby nor beside a node, which would have to wait for it."""
    home = Home(tmp_path, "dir", follows=True)
    create_backend(home.url, None)
    with server_process(home.url) as server:
        home.url = f"{server.url}?protocol=1"
        home.init()
        home.run(*_ROUTER, "--calls", "20")
        assert "The backup is not followed: its server's release is too old" in home.log()
        assert not (home.directory / "backup.replica").exists()
        _refused(3, "too old to be followed", home.url, tmp_path / "standby")


@pytest.mark.parametrize("scheme", ["dir", "file"])
def test_copy_is_promoted_only_if_somebody_knows_that_it_is_new(
    tmp_path: Path, scheme: str
) -> None:
    """A complete copy looks like the backup itself."""
    url = _backup(tmp_path, scheme)
    append(url, payments(10, 12))
    directory = tmp_path / "standby"
    directory.mkdir()
    with open_reader(url) as reader:
        epoch = reader.standing.epoch
    promote = ("--promote", url, directory)
    _refused(13, "its last change is data version 11, stored", *promote)
    _refused(13, "at data version 11, and the old node had 12", "--at-least", "12", *promote)
    old_one = ("--original", "--at-least", "12")
    _refused(13, "and the old node had 12", *old_one, *promote)
    _refused(2, "need --promote", "--original", url, directory)
    assert not (directory / "lightningd.sqlite3").exists()
    assert not (directory / "backup.lock").exists()
    with open_reader(url) as reader:
        assert reader.standing.epoch == epoch, "the old node was fenced"
    done = programs.run("standby", "--at-least", "11", "--json", *promote)
    assert json.loads(done.stdout)["version"] == 11


def test_server_vouches_for_its_backup(tmp_path: Path) -> None:
    (tmp_path / "standby").mkdir()
    with server_process(_backup(tmp_path)) as server:
        promote = ("--promote", server.url, tmp_path / "standby")
        _refused(13, "and the old node had 10", "--at-least", "10", *promote)
        assert programs.run("standby", *promote).returncode == 0
