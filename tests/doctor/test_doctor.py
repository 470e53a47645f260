"""Each finding is made true by a real arrangement: disks, files, nodes, their RPC."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from cln_backup.backends import place_at
from cln_backup.model.errors import NotFound
from cln_backup.model.health import Level
from cln_backup.node.settings import Alarm, read_state, write_state
from cln_backup.operations.doctor import node
from cln_backup.operations.doctor.examine import examine
from cln_backup.operations.doctor.looking import looked
from cln_backup.operations.initialize import initialize
from cln_backup.storage import disks
from tests import programs
from tests.histories import append, build_database, payments, started_node
from tests.plugin.home import CAPTURES, PLUGIN, Home, processes_of
from tests.small_disk import fill, small_disk
from tests.waiting import WAIT_S, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"), "--calls", "60")
_OF_THE_MACHINE = {
    *("clock-not-synchronised", "room", "room-of-node", "in-memory", "in-container", "fuse"),
    *("shared-file-system", "no-barrier", "no-direct-read", "no-directory-sync"),
}
"""Findings about the machine of the tests, whatever a test arranges."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A node that is stopped, with a backup beside it."""
    path = tmp_path / "bitcoin"
    path.mkdir(mode=0o700)
    build_database(path / "lightningd.sqlite3", [*started_node(), *payments(4, 9)])
    (path / "hsm_secret").write_bytes(os.urandom(32))
    (path / "hsm_secret").chmod(0o400)
    return path


def _levels(directory: Path | None, url: str | None = None) -> dict[str, Level]:
    """The codes that are not good."""
    found = examine(None if directory is None else str(directory), url, str(PLUGIN)).findings
    return {each.code: each.level for each in found if each.level is not Level.GOOD}


def _run(*arguments: object) -> tuple[dict[str, Any], int]:
    done = programs.run("doctor", "--json", *arguments)
    assert done.stderr == ""
    return json.loads(done.stdout), done.returncode


def _codes(fields: dict[str, Any]) -> set[str]:
    return {each["code"] for each in fields["findings"] if each["level"] != "good"}


@contextmanager
def _another_disk(place: Path, image: Path) -> Iterator[Path | None]:
    """A file system of another disk, mounted at a new directory; `None` if that cannot be made."""
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(256 << 20)
    made = all(
        subprocess.run(list(map(str, command)), check=False, capture_output=True).returncode == 0
        for command in (["mkfs.ext4", "-q", image], ["mount", "-o", "loop", image, place])
    )
    try:
        yield place if made else None
    finally:
        if made:
            subprocess.run(["umount", "-l", place], check=True)  # a child of the node may end later


def test_recorded_node_is_all_green(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("node")
    home = Home(base, "dir-encrypted", follows=True)
    (home.directory / "hsm_secret").write_bytes(os.urandom(32))
    (home.directory / "hsm_secret").chmod(0o400)
    with _another_disk(base / "disk", tmp_path / "image") as disk:
        on_one_disk = {"same-disk"} if disk is None else set()
        home.url = home.url.replace(str(base), str(disk or base))
        home.init()
        running = home.start(*_ROUTER, "--hold")
        home.wait_for_calls(60)
        wait_until(lambda: home.call("backup-status")["proven_version"] == 58, home.log)
        home.cli("drill", "--lightning-dir", str(home.directory))
        there = ("--lightning-dir", home.directory)
        fields, code = _run("--hsm-secret-is-copied", *there)
        assert _codes(fields) - _OF_THE_MACHINE == on_one_disk, fields
        if not _codes(fields):
            assert (code, fields["level"]) == (0, "good")
            assert programs.run("doctor", "--quiet", *there).stdout == ""
        texts = {each["code"]: each["text"] for each in fields["findings"]}
        assert "two processes" in texts["no-guard"]
        assert "Each change is stored" in texts["not-protected"]
        assert "up to data version 58" in texts["not-proven"]
        assert "hsm-secret" in texts["only-key-file"]
        home.call("stop")
        home.end(running)
        fields, _ = _run(*there)
        # The follower may have ended before it noted its last proof.
        found = _codes(fields) - _OF_THE_MACHINE - on_one_disk - {"not-proven"}
        assert found == {"node-stopped", "not-loaded"}
    # The disk is gone: its mount point is empty.
    fields, code = _run(*there)
    if disk is not None:
        assert code == 31
        assert "cannot-open" in _codes(fields)


def test_node_without_the_plugin_or_not_as_important(tmp_path: Path) -> None:
    home = Home(tmp_path, "file")
    home.init()
    running = home.start(*_ROUTER, "--hold", important=False)
    home.wait_for_calls(60)
    found = _levels(home.directory)
    assert found["not-important"] is Level.WARNING
    assert "not-loaded" not in found
    os.kill(processes_of(running.pid)[0], signal.SIGKILL)
    wait_until(lambda: "not-protected" in _levels(home.directory), home.log)
    home.call("stop")
    home.end(running, code=None)
    alone = programs.start("simulator", home.directory, "--quiet", *_ROUTER[:2], "--hold")
    home._node = alone
    home.wait_for_calls(60)
    assert _levels(home.directory)["not-loaded"] is Level.BAD
    home.call("stop")
    alone.wait()


def test_node_that_does_not_answer(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    initialize(f"dir://{directory.parent}/backup", str(directory))
    monkeypatch.setattr(node, "_ANSWER_S", 0.05)
    monkeypatch.chdir(directory)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind("lightning-rpc")
        listening.listen()
        assert _levels(directory)["no-answer"] is Level.BAD


@pytest.mark.parametrize(
    "result", [[], None, {"plugins": 1}, {"plugins": [1], "configs": {"wallet": 2}}]
)
def test_node_that_answers_nonsense(
    result: object, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initialize(f"dir://{directory.parent}/backup", str(directory))
    monkeypatch.chdir(directory)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind("lightning-rpc")
        listening.listen()
        listening.settimeout(WAIT_S)

        def serve() -> None:
            for _ in ("getinfo", "plugin", "listconfigs", "backup-status"):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(json.dumps({"id": 1, "result": result}).encode())

        answering = threading.Thread(target=serve)
        answering.start()
        found = _levels(directory)
        answering.join()
    assert found["not-important"] is Level.WARNING


def test_stopped_node_by_its_files(directory: Path) -> None:
    url = f"dir://{directory.parent}/backup"
    initialize(url, str(directory))
    found = _levels(directory)
    assert set(found) - _OF_THE_MACHINE == {
        "node-stopped", "not-loaded", "same-disk", "not-proven", "never-drilled",
        "hsm-secret-not-copied",
    }  # fmt: skip
    (directory / "config").write_text(f"important-plugin={PLUGIN}\n")
    assert "not-loaded" not in _levels(directory)
    (directory / "config").write_text(
        f"important-plugin={PLUGIN}\nplugin=/opt/backup.py\nwallet=postgres://ln@db/ln\n"
    )
    found = _levels(directory)
    assert (found["loaded-twice"], found["postgres-wallet"]) == (Level.BAD, Level.BAD)


def test_wrong_rights_and_keys_and_old_files(directory: Path) -> None:
    place = directory.parent / "backup"
    initialize(f"dir://{place}", str(directory), encrypt=True)
    (place / "key-hsm-secret").unlink()
    place.chmod(0o755)
    for name in ("backup.key", "hsm_secret"):
        (directory / name).chmod(0o644)
    (place / "dropped-0000000007").write_bytes(b"x")
    os.utime(place / "dropped-0000000007", (0, 0))
    (directory / "backup.lock").chmod(0o666)
    found = _levels(directory)
    assert found["only-key-file"] is Level.BAD
    expected = {
        "key-file-readable", "hsm-secret-readable", "others-may-read", "others-may-write",
        "leftovers",
    }  # fmt: skip
    assert expected <= {code for code, level in found.items() if level is Level.WARNING}
    lock = json.loads((directory / "backup.lock").read_text())
    (directory / "backup.key").rename(place.parent / "moved.key")
    assert _levels(directory)["key-file-missing"] is Level.BAD
    (place.parent / "moved.key").rename(place / "moved.key")
    lock["backend_url"] = f"dir://{place}?key-file={place}/moved.key"
    (directory / "backup.lock").write_text(json.dumps(lock))
    assert _levels(directory)["key-file-beside-backup"] is Level.WARNING


def test_disk_in_memory_full_and_read_only(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8192) as disk:
        url = f"dir://{disk}/backup"
        assert programs.run("init", url).returncode == 0
        append(url, [*started_node(), *payments(4, 9)])
        found = _levels(None, url)
        assert found["in-memory"] is Level.BAD
        assert found["room"] is Level.WARNING
        fill(disk)
        assert _levels(None, url)["room"] is Level.BAD
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert _levels(None, url)["read-only"] is Level.BAD


def test_disks_are_told_apart(tmp_path: Path) -> None:
    assert disks.same_disk(str(tmp_path), str(tmp_path.parent))
    with small_disk(tmp_path / "disk", 64) as disk:
        assert not disks.same_disk(str(tmp_path), str(disk))


def test_files_of_another_user(directory: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give files to another user")
    place = directory.parent / "backup"
    initialize(f"dir://{place}", str(directory))
    for path in (directory, *directory.iterdir()):
        os.chown(path, 12345, 12345)
    assert _levels(directory)["wrong-owner"] is Level.BAD
    for path in (place, *place.iterdir()):
        os.chown(path, 12345, 12345)
    assert "wrong-owner" not in _levels(directory)


def test_broken_directory_is_findings_and_no_crash(tmp_path: Path) -> None:
    found = _levels(tmp_path / "missing")
    assert found["no-settings"] is Level.BAD
    assert found["cannot-look"] is Level.BAD
    (tmp_path / "backup.lock").write_text('{"backend_url": "dir:///nowhere/at/all"}')
    (tmp_path / "backup.state").write_text("{")
    found = _levels(tmp_path)
    assert {"cannot-look", "cannot-open"} <= {
        code for code, level in found.items() if level is Level.BAD
    }
    fields, code = _run("--lightning-dir", tmp_path)
    assert (code, fields["level"]) == (31, "bad")


@contextmanager
def _as_another_user(*directories: Path) -> Iterator[None]:
    """This process may not look into these directories."""
    for each in directories:
        each.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for each in directories:
            each.chmod(0o700)


def test_directories_that_may_not_be_read_are_findings(directory: Path) -> None:
    place = directory.parent / "backup"
    initialize(f"dir://{place}", str(directory))
    with _as_another_user(directory, place):
        found = _levels(directory)
        alone = _levels(None, f"dir://{place}")
    assert found["cannot-look"] is Level.BAD
    assert "no-settings" not in found
    assert alone["cannot-open"] is alone["cannot-look"] is Level.BAD


def test_alarm_and_failed_drill_of_a_stopped_node(directory: Path) -> None:
    initialize(f"dir://{directory.parent}/backup", str(directory))
    alarm = Alarm("replay", "Change 7 does not replay.", 1.0)
    state = read_state(str(directory))
    write_state(
        str(directory), state._replace(alarm=alarm, drilled_at=time.time(), drill_passed=False)
    )
    fields, code = _run("--lightning-dir", directory)
    levels = {each["code"]: each["level"] for each in fields["findings"]}
    assert (code, levels["replay"], levels["drill-failed"]) == (31, "bad", "bad")
    assert "not-protected" not in levels


def test_look_that_fails_is_one_finding() -> None:
    def refused() -> list[Any]:
        raise PermissionError(13, "Permission denied", "/mnt/backup")

    def missing() -> list[Any]:
        raise NotFound("There is no backup at /mnt/backup.")

    [one] = looked("the place", refused)
    assert one.text == "Cannot look at the place: /mnt/backup: Permission denied."
    [other] = looked("the place", missing)
    assert other.text == "Cannot look at the place: There is no backup at /mnt/backup."


def test_backup_alone_and_exit_codes(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    assert programs.run("init", url).returncode == 0
    fields, code = _run(url)
    assert code == {"good": 0, "warning": 30, "bad": 31}[fields["level"]]
    assert set(fields) == {"level", "backend_url", "findings", "write_test"}
    assert fields["backend_url"] == url
    for each in fields["findings"]:
        assert set(each) == {"code", "level", "text", "remedy"}
        assert all(isinstance(value, str) for value in each.values())
    levels = [each["level"] for each in fields["findings"]]
    assert levels == sorted(levels, key=["bad", "warning", "good"].index)
    assert programs.run("doctor").returncode == 2


def test_text_has_the_worst_first_and_what_to_do(tmp_path: Path) -> None:
    done = programs.run("doctor", "--lightning-dir", tmp_path)
    assert done.returncode == 31
    lines = done.stdout.splitlines()
    assert lines[0].startswith("BAD      Could not find backup.lock")
    assert lines[1].endswith("[no-settings]")
    assert "\x1b" not in done.stdout
    assert lines[-1].startswith("2 bad") or " bad, " in lines[-1]


def test_copy_of_hsm_secret_is_remembered(directory: Path) -> None:
    initialize(f"dir://{directory.parent}/backup", str(directory))
    before = read_state(str(directory))
    fields, _ = _run("--hsm-secret-is-copied", "--lightning-dir", directory)
    assert "hsm-secret-not-copied" not in _codes(fields)
    state = read_state(str(directory))
    assert state.hsm_secret_copied_at is not None
    assert state == before._replace(hsm_secret_copied_at=state.hsm_secret_copied_at)
    assert programs.run("doctor", "--hsm-secret-is-copied", "dir:///x").returncode == 2


def test_token_that_others_can_read(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_bytes(b"0" * 64)
    url = f"socket:127.0.0.1:1?deadline=1&token-file={token}"
    token.chmod(0o644)
    assert _levels(None, url)["secret-readable"] is Level.WARNING
    token.chmod(0o600)
    assert "secret-readable" not in _levels(None, url)


@pytest.mark.parametrize(
    ("url", "given_up"),
    [
        ("socket:192.0.2.1:8700", {"PLAIN", "OPEN"}),
        ("socket:192.0.2.1:8700?tls=yes&token-file=/token", set()),
        ("socket:192.0.2.1:8700?token-file=/token&insecure=yes", {"PLAIN"}),
        ("socket:192.0.2.1:8700?tls=yes&key-file=/key", {"OPEN"}),
        ("socket:127.0.0.1:8700", set()),
        ("socket:127.0.0.1.example:8700", {"PLAIN", "OPEN"}),
        ("s3://bucket/node", set()),
        ("s3://bucket/node?fencing=none&endpoint=http://192.0.2.1", {"UNFENCED", "PLAIN"}),
        ("postgresql://db/backup?node=ln", set()),
        ("postgresql://db/backup?node=ln&unsafe=yes&insecure=yes", {"UNSAFE", "PLAIN"}),
        ("dir:///mnt/backup/node", set()),
    ],
)
def test_what_a_url_gives_up(url: str, given_up: set[str]) -> None:
    assert {each.name for each in place_at(url).concessions} == given_up
