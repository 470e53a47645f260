"""`backup-cli` as an operator runs it: a real process each time."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.cli.commands import cli
from cln_backup.model import errors
from tests import programs
from tests.histories import (
    OFF,
    append,
    assert_same_database,
    build_database,
    payment,
    payments,
    rider,
    snapshot_of,
    started_node,
    told_by,
    transaction,
)
from tests.operations.neighbours import holding, listening
from tests.programs import CLI
from tests.seed_file import SeedNode

HISTORY = [*started_node(), *payments(4, 20)]
COMMANDS = ("init", "snapshot", "restore", "status", "verify", "compact", "log")


class Ended(NamedTuple):
    """A process that has ended."""

    code: int
    out: str
    err: str

    @property
    def fields(self) -> dict[str, Any]:
        """Its output, which must be one JSON object."""
        assert self.out.endswith("\n")
        assert self.out.count("\n") == 1
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def error(self) -> dict[str, Any]:
        assert set(self.fields) == {"error"}
        found: dict[str, Any] = self.fields["error"]
        return found


def run(*arguments: object, cwd: Path | None = None, **environment: str) -> Ended:
    ended = programs.run(*arguments, cwd=cwd, env=os.environ | environment)
    assert "Traceback" not in ended.stderr
    return Ended(ended.returncode, ended.stdout, ended.stderr)


class Place:
    """A node's directory and a backup of it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.directory = base / "lightning" / "regtest"
        self.directory.mkdir(parents=True)
        self.database = self.directory / "lightningd.sqlite3"
        self.path = base / "backups" / "node.bkp"
        self.path.parent.mkdir()
        self.url = f"file://{self.path}"

    def make(self, *more: Any) -> None:
        create_backend(self.url, None)
        append(self.url, [*HISTORY, *more])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def made(place: Place) -> Place:
    place.make()
    return place


@pytest.fixture
def node(place: Place) -> Place:
    build_database(place.database, HISTORY)
    return place


# init


def test_init(node: Place) -> None:
    ended = run("init", "--lightning-dir", node.directory, node.url)
    assert ended.code == 0
    assert f"Found an existing database at {node.database}" in ended.out
    assert f"Successfully written initial snapshot to {node.url} (data version 19" in ended.out
    assert f"Initialized backup backend {node.url}" in ended.out
    *_, before_line, line, after_line, last = ended.out.splitlines()
    assert line == f"important-plugin={CLI.with_name('cln-backup')}"
    assert before_line == after_line == ""
    assert last == "Then start Core-Lightning, and look for this in its log: Versions match up"
    assert "THE NODE IS NOT PROTECTED YET" in ended.out
    assert f"The node's database is assumed to be {node.database}" in ended.out
    assert "hsm_secret" in ended.err
    assert told_by(node.url)[0].version == 19


def test_init_json(node: Place) -> None:
    ended = run("init", "--json", "--lightning-dir", node.directory, node.url)
    assert ended.code == 0
    assert ended.err == ""
    fields = ended.fields
    assert isinstance(fields.pop("lacks"), list)  # as the tests' disk has it
    assert fields == {
        "backend_url": node.url,
        "database": str(node.database),
        "version": 19,
        "snapshot_bytes": node.database.stat().st_size,
        "same_disk": True,
        "keys": [],
        "node_files": None,
        "node_files_notices": [],
        "configuration_line": f"important-plugin={CLI.with_name('cln-backup')}",
        "log_phrase": "Versions match up",
    }


def test_init_of_a_new_node(place: Place) -> None:
    ended = run("init", "--lightning-dir", place.directory, place.url)
    assert ended.code == 0
    assert "Database does not exist yet, created an empty backup file" in ended.out
    assert told_by(place.url) == []


def test_init_without_a_node(place: Place) -> None:
    ended = run("init", place.url)
    assert ended.code == 0
    assert "Initialized backup backend" in ended.out
    assert list(place.directory.iterdir()) == []
    again = run("init", "--json", place.url)
    assert (again.code, again.error["type"]) == (5, "AlreadyExists")


def test_init_warns_of_the_same_disk(node: Place, memory_path: Path) -> None:
    same = run("init", "--lightning-dir", node.directory, node.url)
    assert "same disk" in same.err
    if memory_path.stat().st_dev == node.base.stat().st_dev:
        pytest.skip("this machine has one disk only")
    (node.directory / "backup.lock").unlink()
    other = run("init", "--lightning-dir", node.directory, f"file://{memory_path}/node.bkp")
    assert other.code == 0
    assert "same disk" not in other.err


def test_init_with_a_wallet(place: Place) -> None:
    build_database(place.base / "elsewhere.sqlite3", HISTORY)
    wallet = f"sqlite3://{place.base}/elsewhere.sqlite3"
    ended = run("init", "--lightning-dir", place.directory, "--wallet", wallet, place.url)
    assert ended.code == 0
    assert told_by(place.url)[0].version == 19
    without = run("init", "--wallet", wallet, f"{place.url}2")
    assert without.code == 2


# snapshot


def test_snapshot(node: Place) -> None:
    run("init", "--lightning-dir", node.directory, node.url)
    node.database.unlink()
    build_database(node.database, [*HISTORY, *payments(20, 25)])
    ended = run("snapshot", "--lightning-dir", node.directory)
    assert ended.code == 0
    assert "data version 24" in ended.out
    fields = run("snapshot", "--json", "--lightning-dir", node.directory).fields
    assert fields["version"] == 24
    assert set(fields) == {"database", "version", "snapshot_bytes", "same_disk", "version_before"}


# restore


def test_restore(made: Place) -> None:
    ended = run("restore", made.url, made.directory)
    assert ended.code == 0
    assert f"Restored {made.database} at data version 19" in ended.out
    assert "hsm_secret" in ended.out
    assert_same_database(made.database, build_database(made.base / "expected", HISTORY))


def test_restore_json(made: Place) -> None:
    ended = run("restore", "--json", made.url, "restored.sqlite3", cwd=made.base)
    assert ended.code == 0
    assert ended.err == ""
    assert ended.fields == {
        "path": str(made.base / "restored.sqlite3"),
        "version": 19,
        "version_count": len(HISTORY),
        "size_bytes": (made.base / "restored.sqlite3").stat().st_size,
        "foreign_key_faults": 0,
        "notices": [],
    }


def test_restore_to_an_earlier_version(made: Place) -> None:
    ended = run("restore", "--to", 12, made.url, made.directory)
    assert ended.code == 0
    assert "at data version 12" in ended.out
    kept = [change for change in HISTORY if change.version <= 12]
    assert_same_database(made.database, build_database(made.base / "expected", kept))
    missing = run("restore", "--json", "--to", 99, made.url, made.base / "other")
    assert (missing.code, missing.error["type"]) == (4, "NotFound")
    assert run("restore", "--to", -1, made.url, made.base / "other").code == 2


def test_restore_of_a_crashed_file_of_the_incumbent(place: Place) -> None:
    crashed = SeedNode(place.path, HISTORY)
    crashed.crashes_after_the_answer(payment(20, "never committed"))
    crashed.commits(payment(20))
    ended = run("restore", place.url, place.directory)
    assert ended.code == 0
    assert "never committed" in ended.err
    expected = build_database(place.base / "expected", [*HISTORY, payment(20)])
    assert_same_database(place.database, expected)


def test_restore_tells_of_rows_that_refer_to_none(place: Place) -> None:
    place.make(rider(19, OFF), transaction(20, "INSERT INTO channels VALUES (1, 77)"))
    ended = run("restore", place.url, place.directory)
    assert ended.code == 0
    assert "1 rows" in ended.err


# status


def test_status(made: Place) -> None:
    ended = run("status", made.url)
    assert ended.code == 0
    shown = dict(line.split(maxsplit=1) for line in ended.out.splitlines() if line[:4] != "data"
                 and line[:4] != "last")  # fmt: skip
    assert shown["backup"] == made.url
    assert shown["changes"] == str(len(HISTORY))
    assert "data version  19" in ended.out
    assert "last change   transaction" in ended.out
    assert ended.err == ""


def test_status_json(made: Place) -> None:
    fields = run("status", "--json", made.url).fields
    assert fields.pop("space_bytes") >= made.path.stat().st_blocks * 512
    assert fields.pop("last_change_at") == pytest.approx(made.path.stat().st_mtime)
    assert fields == {
        "backend_url": made.url,
        "version": 19,
        "version_count": len(HISTORY),
        "backupsize": made.path.stat().st_size,
        "head": "transaction",
        "dated_by_file": True,
        "node_id": None,
        "proven_version": None,
        "proven_at": None,
        "durability": None,
        "node_files_at": None,
        "encrypted": False,
        "cipher": None,
        "keys": [],
        "generations": None,
        "oldest_generation_at": None,
        "notices": [],
    }


def test_status_of_an_empty_backup(place: Place) -> None:
    create_backend(place.url, None)
    assert "none: the backup is empty" in run("status", place.url).out
    assert run("status", "--json", place.url).fields["head"] is None


def test_status_while_a_writer_is_at_work(made: Place) -> None:
    with open_writer(made.url):
        assert run("status", made.url).code == 0
        assert run("verify", made.url).code == 0
        assert run("log", made.url).code == 0


def test_torn_end_is_noted(made: Place) -> None:
    made.path.write_bytes(made.path.read_bytes() + b"torn")
    for command in ("status", "verify", "log"):
        assert "Note: " in run(command, made.url).err
    assert len(run("status", "--json", made.url).fields["notices"]) == 1
    assert made.path.read_bytes().endswith(b"torn")


# verify


def test_verify(made: Place) -> None:
    ended = run("verify", made.url)
    assert (ended.code, ended.err) == (0, "")
    assert "Good up to data version 19" in ended.out
    assert "replayed" in ended.out
    assert "replayed" not in run("verify", "--no-replay", made.url).out


def test_verify_json(made: Place) -> None:
    expected = {
        "version": 19,
        "version_count": len(HISTORY),
        "replayed": True,
        "foreign_key_faults": 0,
        "healed": [],
        "good": True,
        "notices": [],
    }
    assert run("verify", "--json", made.url).fields == expected
    without = run("verify", "--json", "--no-replay", made.url).fields
    assert without == expected | {"replayed": False}


def test_verify_says_what_a_snapshot_has_healed(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/healed.bkp"
    create_backend(url, None)
    bad = transaction(4, "INSERT INTO nowhere VALUES (1)")
    healing = snapshot_of([*started_node(), *payments(4, 7)], tmp_path / "healing.sqlite3")
    append(url, [*started_node(), bad, payment(5), healing, payment(7)])
    told = run("verify", url)
    assert told.code == 0
    assert told.out == "Good up to data version 7: 7 of 9 changes were replayed and checked.\n"
    assert "Passed over 2 changes after data version 3" in told.err
    assert "A snapshot at 6 has healed the backup: its last version is right" in told.err
    assert run("verify", "--json", url).fields["healed"] == [
        {"good_version": 3, "healed_version": 6, "changes": 2}
    ]


def test_verify_of_a_damaged_backup(made: Place) -> None:
    content = bytearray(made.path.read_bytes())
    content[512 + 8] = 7
    made.path.write_bytes(content)
    ended = run("verify", made.url)
    assert (ended.code, ended.out) == (8, "")
    assert ended.err.startswith("Error: ")
    error = run("verify", "--json", made.url)
    assert error.code == 8
    assert error.error["type"] == "Damaged"
    assert (error.error["offset_bytes"], error.error["good_version"]) == (512, 0)
    assert made.path.read_bytes() == bytes(content)


def test_verify_of_a_history_that_cannot_be_replayed(place: Place) -> None:
    place.make(transaction(20, "INSERT INTO nowhere VALUES (1)"), payment(21))
    ended = run("verify", "--json", place.url)
    assert ended.code == 9
    assert ended.error["type"] == "ReplayFailed"
    assert ended.error["good_version"] == 19
    assert run("verify", "--no-replay", place.url).code == 0


# compact


def test_compact(made: Place) -> None:
    ended = run("compact", "--force", made.url)
    assert ended.code == 0
    assert f"in {len(HISTORY)} changes" in ended.out
    assert "in 2 changes" in ended.out
    again = run("compact", "--json", "--force", made.url).fields
    assert again["before"]["version_count"] == again["after"]["version_count"] == 2
    assert set(again) == {"before", "after"}
    assert set(again["before"]) == {"backupsize", "version_count"}


# log


def test_log(made: Place) -> None:
    ended = run("log", made.url)
    head, *lines = ended.out.splitlines()
    assert head.split() == ["version", "kind", "bytes", "statements", "stored", "tables"]
    assert len(lines) == len(HISTORY)
    assert lines[1].split()[:2] == ["1", "rider"]
    assert lines[-1].split()[:2] == ["19", "transaction"]
    assert "payments, vars" in lines[-1]


def test_log_json(made: Place) -> None:
    ended = run("log", "--json", "--from", "18", made.url)
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert [line["version"] for line in lines] == [18, 19]
    assert lines[0] == {
        "version": 18,
        "kind": "transaction",
        "size_bytes": sum(len(text) for text in HISTORY[-2].transaction or ()),
        "statements": 3,
        "tables": ["payments", "vars"],
        "stored_at": None,
    }
    assert run("log", "--from", "-1", made.url).code == 2


def test_log_into_a_pipe_that_closes(made: Place) -> None:
    """As with `backup-cli log … | head`."""
    process = subprocess.Popen([CLI, "log", made.url], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()


def test_log_shows_no_contents(place: Place) -> None:
    place.make(payment(20, "hunter2"))
    for arguments in (("log",), ("log", "--json"), ("status",), ("verify",)):
        assert "hunter2" not in run(*arguments, place.url).out


# what every command does


def _bad_url(_: Place) -> list[object]:
    return ["status", "nonsense://there"]


def _not_found(place: Place) -> list[object]:
    return ["restore", f"file://{place.base}/none", place.directory]


def _already_exists(place: Place) -> list[object]:
    place.database.write_text("mine")
    return ["restore", place.url, place.directory]


def _writer_conflict(place: Place) -> list[object]:
    return ["compact", place.url]


def _damaged(place: Place) -> list[object]:
    place.path.write_bytes(b"not a backup")
    return ["status", place.url]


def _replay_failed(place: Place) -> list[object]:
    append(place.url, [transaction(20, "INSERT INTO nowhere VALUES (1)")])
    return ["restore", place.url, place.directory]


def _storage_error(place: Place) -> list[object]:
    return ["init", f"file://{place.path}/below/a/file"]


def _bad_settings(place: Place) -> list[object]:
    return ["snapshot", "--lightning-dir", place.directory]


def _discontinuity(place: Place) -> list[object]:
    (place.directory / "backup.lock").write_text(json.dumps({"backend_url": place.url}))
    build_database(place.database, HISTORY[:-1])
    return ["snapshot", "--lightning-dir", place.directory]


REFUSALS = {
    errors.BadUrl: _bad_url,
    errors.NotFound: _not_found,
    errors.AlreadyExists: _already_exists,
    errors.Damaged: _damaged,
    errors.ReplayFailed: _replay_failed,
    errors.StorageError: _storage_error,
    errors.BadSettings: _bad_settings,
    errors.Discontinuity: _discontinuity,
}


@pytest.mark.parametrize("kind", REFUSALS, ids=lambda kind: kind.__name__)
def test_exit_code_says_what_went_wrong(kind: type[errors.BackupError], made: Place) -> None:
    arguments = REFUSALS[kind](made)
    ended = run(*arguments)
    assert (ended.code, ended.out) == (kind.exit_code, "")
    assert ended.err.startswith("Error: ")
    assert len(ended.err.splitlines()) == 1
    as_json = run(*arguments[:1], "--json", *arguments[1:])
    assert as_json.code == kind.exit_code
    assert as_json.err == ""
    assert as_json.error["type"] == kind.__name__
    said = ended.err.removeprefix("Error: ").rstrip("\n")
    assert _without_pids(as_json.error["message"]) == _without_pids(said)


def _without_pids(message: str) -> str:
    return re.sub(r"-\d+\b", "-PID", message)


def test_running_node_has_a_code_of_its_own(node: Place) -> None:
    with listening(node.directory / "lightning-rpc"):
        ended = run("init", "--lightning-dir", node.directory, node.url)
    assert ended.code == errors.NodeRunning.exit_code
    with holding(node.database):
        assert run("init", "--lightning-dir", node.directory, node.url).code == 6
    assert not node.path.exists()


def test_writer_at_work_has_a_code_of_its_own(made: Place) -> None:
    with open_writer(made.url):
        ended = run(*_writer_conflict(made), "--json")
        assert ended.code == errors.WriterConflict.exit_code
        assert str(os.getpid()) in ended.error["message"]


@pytest.mark.parametrize("command", ["verify", "compact"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_command_leaves_nothing(
    command: str, number: signal.Signals, memory_path: Path
) -> None:
    url = f"file://{memory_path}/node.bkp"
    create_backend(url, None)
    append(url, [*HISTORY, *payments(20, 8_000)])
    before = {path.name for path in memory_path.iterdir()} | {"node.bkp.writer"}
    process = programs.start("backup-cli", command, url, stderr=subprocess.PIPE)
    with process:
        while not any(path.stat().st_size for path in memory_path.glob(".*/*")):
            assert process.poll() is None, "it was done before it could be stopped"
        process.send_signal(number)
        _, complained = process.communicate()
    assert process.returncode == 130
    assert complained.startswith(b"Error: ")
    assert {path.name for path in memory_path.iterdir()} <= before
    with open_reader(url) as backend:
        assert backend.version == 7_999


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_help_has_an_example(command: str) -> None:
    ended = run(command, "--help")
    assert ended.code == 0
    examples = ended.out.partition("Examples:")[2]
    assert f"backup-cli {command}" in examples


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_looks_or_changes_can_speak_json(command: str) -> None:
    assert "--json" in run(command, "--help").out


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_examples_of_the_help_are_right(command: str) -> None:
    """Each example is understood; it is not run."""
    shown = run(command, "--help").out.partition("Examples:")[2]
    examples = [line.split() for line in shown.splitlines() if "backup-cli" in line]
    assert examples
    for _, name, *arguments in examples:
        assert name == command
        cli.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_and_version(arguments: list[str]) -> None:
    ended = run(*arguments)
    assert ended.code == 0
    assert "backup-cli" in ended.out
    if arguments == ["--help"]:
        assert set(cli.commands) <= set(ended.out.split())


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["restore"], ["status"], ["status", "--nonsense", "file:///a"]]
)
def test_wrong_command_line(arguments: list[str]) -> None:
    assert run(*arguments).code == 2


def test_no_command_at_all() -> None:
    ended = run()
    assert ended.code == 2
    assert "Usage" in ended.out + ended.err


def test_url_is_taken_as_it_stands(place: Place) -> None:
    odd = place.base / "a b%20ä;c"
    assert run("init", f"file://{odd}").code == 0
    assert odd.exists()


def test_output_for_machines_is_plain_when_there_is_no_terminal(made: Place) -> None:
    for command in (["verify"], ["status"], ["restore", str(made.base / "r.sqlite3")]):
        ended = run(command[0], made.url, *command[1:])
        assert "\x1b" not in ended.out + ended.err
        assert "\r" not in ended.out + ended.err


@pytest.mark.parametrize("command", ["restore", "verify", "compact"])
def test_progress_on_a_terminal(command: str, made: Place) -> None:
    import pty

    leader, follower = pty.openpty()
    arguments = [made.url, str(made.base / "r.sqlite3")] if command == "restore" else [made.url]
    process = subprocess.Popen(
        [CLI, command, *arguments],
        stdout=subprocess.PIPE,
        stderr=follower,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(follower)
    with process:
        shown = b""
        while True:
            try:
                data = os.read(leader, 4096)
            except OSError:  # the other side has gone
                break
            if not data:
                break
            shown += data
        process.wait()
    os.close(leader)
    assert process.returncode == 0
    assert b"Traceback" not in shown
    assert b"Error" not in shown


# Reads a backup as root, which loads all that it takes, since Python itself may be out of reach for
# another user; then again as that user.
_AS_ANOTHER_USER = """
import os, sys
from cln_backup.cli.commands import main
def ended():
    try:
        main()
    except SystemExit as end:
        return end.code or 0
assert ended() == 0
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(ended())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_backup_of_another_user_is_refused_with_a_hint(made: Place) -> None:
    with tempfile.TemporaryDirectory() as entered:  # no other user can enter pytest's own
        Path(entered).chmod(0o711)
        backup = shutil.copy(made.path, entered)
        os.chmod(backup, 0o600)
        ended = subprocess.run(
            [sys.executable, "-c", _AS_ANOTHER_USER, "status", f"file://{backup}"],
            check=False,
            capture_output=True,
            text=True,
        )
    assert ended.returncode == errors.StorageError.exit_code, ended.stderr
    assert "permissions" in ended.stderr


def test_whole_way_of_a_node(node: Place) -> None:
    """Set up, run, lose the disk, come back, continue."""
    assert run("init", "--lightning-dir", node.directory, node.url).code == 0
    append(node.url, payments(20, 30))
    assert run("compact", "--force", node.url).code == 0
    append(node.url, payments(30, 40))
    shutil.rmtree(node.directory)
    node.directory.mkdir()
    assert run("restore", node.url, node.directory).code == 0
    expected = build_database(node.base / "expected", [*HISTORY, *payments(20, 40)])
    assert_same_database(node.database, expected)
    (node.directory / "backup.lock").write_text(json.dumps({"backend_url": node.url}))
    assert run("snapshot", "--lightning-dir", node.directory).code == 0
    append(node.url, [payment(40)])
    assert run("verify", node.url).code == 0


def test_old_backup_is_told_by_its_age(made: Place) -> None:
    long_ago = time.time() - 3 * 86_400 - 600
    os.utime(made.path, (long_ago, long_ago))
    assert "3 days ago" in run("status", made.url).out


def test_snapshot_in_the_log(place: Place) -> None:
    base = snapshot_of(HISTORY, place.base / "base.sqlite3")
    create_backend(place.url, base)
    lines = run("log", place.url).out.splitlines()
    assert lines[1].split()[:2] == ["19", "snapshot"]
