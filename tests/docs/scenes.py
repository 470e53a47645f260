"""States of a machine in which the commands of the documents are typed."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from subprocess import PIPE, STDOUT
from typing import TYPE_CHECKING

from cln_backup.backends import open_writer
from cln_backup.backends.secrets import node_id_of_secret, secret_of_words
from cln_backup.replay.replica import node_id_of
from simulator.build import build_database
from simulator.calls import committed_calls, read_recording
from tests import captured, programs
from tests.docs.sandbox import ROUTER, WORDS, Sandbox
from tests.histories import add_all
from tests.operations.test_undo_migration import BEFORE, MIGRATION
from tests.plugin.test_undo_migration import capture

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from cln_backup.model.change import Change

_SNAPSHOT, _OLDER, _LAST, _AHEAD = 100, 309, 310, 312
"""Data versions: of the backups' snapshots, of their ends, and of databases that are not those."""


def build_template(root: Path) -> None:
    """Makes the files that all scenes begin with: backups of a recorded node, and its databases.

    The node is the router of the recordings, at version 310. Its backups have a snapshot of
    version 100 and the changes since: `node` is encrypted, `plain` and `node.bkp` are not.
    """
    machine = Sandbox(root)
    for directory in (
        *("mnt/backup", "mnt/old", "mnt/new", "srv/backup", "the/copy", "tmp", "etc/cln-backup"),
        *("etc/systemd/system", "var/lib", "databases", "home/ln/.lightning"),
    ):
        (root / directory).mkdir(parents=True)
    machine.node.mkdir(mode=0o700)
    (machine.node / "hsm_secret").write_bytes(bytes(32) + WORDS.encode())
    (root / "the" / "copy" / "hsm_secret").write_bytes(bytes(32) + WORDS.encode())
    database = machine.database
    for version in (_SNAPSHOT, _OLDER, _LAST, _AHEAD):
        calls = committed_calls(read_recording(ROUTER))
        build_database(calls, _at(root, version), until=version)
    backups = root / "mnt" / "backup"
    for name, options in (("node.bkp", []), ("plain", []), ("node", ["--encrypt"])):
        shutil.copy(_at(root, _SNAPSHOT), database)
        lock = machine.node / "backup.lock"
        lock.unlink(missing_ok=True)
        scheme = "file" if name.endswith(".bkp") else "dir"
        made = programs.run(
            "init", *options, "--lightning-dir", machine.node, f"{scheme}://{backups / name}"
        )
        assert made.returncode == 0, made.stderr
        with open_writer(json.loads(lock.read_text())["backend_url"]) as writer:
            writer.claim(str(node_id_of(str(database))))
            add_all(writer, _changes(_SNAPSHOT, _LAST))
    shutil.copy(_at(root, _LAST), database)
    shutil.copy(machine.node / "backup.key", root / "mnt" / "old.key")


def _at(root: Path, version: int) -> Path:
    return root / "databases" / f"{version}.sqlite3"


def _changes(after: int, until: int) -> Iterator[Change]:
    for change in captured.changes(ROUTER):
        if change.version > until:
            return
        if change.version > after:
            yield change


def protected(machine: Sandbox) -> None:
    """A node with an encrypted backup."""
    _lock(machine, "dir:///mnt/backup/node?key-file=/home/ln/.lightning/bitcoin/backup.key")


def _lock(machine: Sandbox, url: str) -> None:
    (machine.node / "backup.lock").write_text(json.dumps({"backend_url": machine.here(url)}))


def plain(machine: Sandbox) -> None:
    """A node whose backup is not encrypted."""
    backup = machine.path("/mnt/backup/node")
    shutil.rmtree(backup)
    backup.with_name("plain").rename(backup)
    _lock(machine, "dir:///mnt/backup/node")


def in_a_file(machine: Sandbox) -> None:
    """A node with a backup in a file, and nothing else of this project."""
    shutil.rmtree(machine.path("/mnt/backup/node"))
    _lock(machine, "file:///mnt/backup/node.bkp")


def bare(machine: Sandbox) -> None:
    """A node without a backup."""
    shutil.rmtree(machine.path("/mnt/backup"))
    machine.path("/mnt/backup/").mkdir()
    for name in ("backup.lock", "backup.key"):
        (machine.node / name).unlink()


def new(machine: Sandbox) -> None:
    """A node that was never started."""
    bare(machine)
    machine.database.unlink()


def lost(machine: Sandbox) -> None:
    """A new machine, with the backup of a node that is lost."""
    shutil.rmtree(machine.home / ".lightning")


def whole_lost(machine: Sandbox) -> None:
    """A new machine, with the backup of a node whose secret has the sandbox's words."""
    bare(machine)
    kept = machine.root / "databases" / "words.sqlite3"
    with contextlib.closing(sqlite3.connect(machine.database)) as database, database:
        node_id = bytes.fromhex(node_id_of_secret(secret_of_words(WORDS).content))
        database.execute("UPDATE vars SET blobval = ? WHERE name = 'node_id'", (node_id,))
    shutil.copy(machine.database, kept)
    (machine.home / ".lightning" / "config").write_text("network=bitcoin\n")
    backup = machine.path("/mnt/backup/node")
    made = programs.run("init", "--encrypt", "--lightning-dir", machine.node, backup)
    assert made.returncode == 0, made.stderr
    lost(machine)


def lost_file(machine: Sandbox) -> None:
    """The same; the backup is a file."""
    machine.database.unlink()


def ahead(machine: Sandbox) -> None:
    """A node that ran without its backup."""
    plain(machine)
    shutil.copy(_at(machine.root, _AHEAD), machine.database)


def older(machine: Sandbox) -> None:
    """A node that lost its last commit."""
    plain(machine)
    shutil.copy(_at(machine.root, _OLDER), machine.database)


def paper(machine: Sandbox) -> None:
    """An encrypted backup that keeps an older generation, and has a passphrase."""
    backup = machine.path("/mnt/backup/node")
    secret = machine.home / "passphrase"
    secret.write_text("secret of the operator\n")
    key = ("--key-file", machine.node / "backup.key")
    for command in (
        ("key", "add", *key, "--new-passphrase-file", secret, "--name", "paper", backup),
        ("compact", "--force", *key, f"dir://{backup}?keep=1"),
    ):
        done = programs.run(*command)
        assert done.returncode == 0, done.stderr
    backup.rename(backup.with_name("encrypted"))


def damaged(machine: Sandbox) -> None:
    """A backup in a file, of which a byte was changed."""
    good = machine.path("/mnt/backup/node.bkp").read_bytes()
    length = int.from_bytes(good[512:516], "big")  # of the snapshot, the first entry
    bad = bytearray(good)
    bad[512 + 9 + length + 8] = 7
    machine.path("/mnt/backup/bad.bkp").write_bytes(bad)


def to_be_copied(machine: Sandbox) -> None:
    """A backup in a file elsewhere."""
    shutil.copy(machine.path("/mnt/backup/node.bkp"), machine.path("/mnt/old/node.bkp"))


def served(machine: Sandbox) -> None:
    """A node whose backup is on a server, which runs."""
    shutil.copy(machine.path("/mnt/backup/node.bkp"), machine.path("/srv/backup/node.bkp"))
    machine.run("backup-cli server file:///srv/backup/node.bkp 127.0.0.1:8700")
    _lock(machine, "socket:127.0.0.1:8700")


def waiting(machine: Sandbox) -> None:
    """A machine for a standby, without a database."""
    served(machine)
    machine.database.unlink()
    (machine.node / "backup.lock").unlink()


def another_node(machine: Sandbox) -> None:
    """The page goes over to another node, which has no backup."""
    (machine.node / "backup.lock").unlink()


def migrating(machine: Sandbox) -> None:
    """A node whose migration was interrupted."""
    new(machine)
    backup = f"dir://{machine.path('/mnt/backup/node')}"
    crash = ("--crash", f"in-commit@{len(BEFORE) + 2}:step=done")
    for command, code in (
        (("backup-cli", "init", "--lightning-dir", machine.node, backup), 0),
        (_simulated(machine, "old", BEFORE), 0),
        ((*_simulated(machine, "new", [*BEFORE, *MIGRATION]), *crash), None),
    ):
        with programs.start(*map(str, command), stdout=PIPE, stderr=STDOUT) as process:
            said, _ = process.communicate()  # and until its plugin has ended
        assert code in (None, process.returncode), said


def _simulated(machine: Sandbox, name: str, changes: Sequence[Change]) -> tuple[object, ...]:
    recording = capture(machine.root / f"{name}.jsonl", changes)
    plugin = programs.CLI.with_name("cln-backup")
    without = ("--option", "backup-follower=off")
    return (
        *("simulator", machine.node, "--capture", recording, "--quiet"),
        *("--synchronous", "full", "--important-plugin", plugin, *without),
    )
