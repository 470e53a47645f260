"""The judgements of the doctor, as tables: facts, and the codes and levels that they give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends.inventory import Key
from cln_backup.backends.place import Concession
from cln_backup.model.errors import BadUrl, StorageError
from cln_backup.model.health import Finding, Level
from cln_backup.operations.doctor import (
    clock,
    destination,
    keys,
    leftovers,
    node,
    place,
    processes,
    proofs,
    releases,
    rights,
    room,
    small_files,
    write_test,
)
from cln_backup.operations.history import Status
from cln_backup.storage.file_system import Weakness
from cln_backup.storage.mounts import Mount

if TYPE_CHECKING:
    from collections.abc import Iterable

_GOOD, _WARNING, _BAD = Level.GOOD, Level.WARNING, Level.BAD
_DAY_S = 86_400.0
_MIB = 1 << 20


def _of(findings: Iterable[Finding]) -> dict[str, Level]:
    found = {}
    for finding in findings:
        assert finding.code not in found, finding
        assert finding.text[0] == finding.text[0].upper() or finding.text[0] in "/bhcl", finding
        assert bool(finding.remedy) == (finding.level is not _GOOD), finding
        found[finding.code] = finding.level
    return found


_RUNS = node.Node(
    runs=True,
    info={"id": "02ab"},
    status={"protected": True},
    plugins=("/opt/bin/cln-backup", "/usr/libexec/c-lightning/plugins/pay"),
    important=True,
)
_LINE = ("/config", "important-plugin=/opt/bin/cln-backup")
_GOOD_NODE = {"not-loaded": _GOOD, "other-plugin": _GOOD}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (_RUNS, _GOOD_NODE),
        (_RUNS._replace(configured=(_LINE,)), _GOOD_NODE),
        (_RUNS._replace(important=False), {"not-important": _WARNING, "other-plugin": _GOOD}),
        (_RUNS._replace(status=None), {"not-loaded": _BAD, "other-plugin": _GOOD}),
        (
            _RUNS._replace(status=None, failed="it has crashed"),
            {"not-protected": _BAD, "other-plugin": _GOOD},
        ),
        (
            _RUNS._replace(plugins=("/a/cln-backup", "/b/cln-backup")),
            _GOOD_NODE | {"loaded-twice": _BAD},
        ),
        (
            _RUNS._replace(plugins=("/a/cln-backup", "/b/backup.py")),
            _GOOD_NODE | {"other-plugin": _WARNING},
        ),
        (_RUNS._replace(silent="it is busy"), {"no-answer": _BAD, "not-loaded": _WARNING}),
        (node.Node(), {"node-stopped": _WARNING, "not-loaded": _WARNING}),
        (node.Node(configured=(_LINE,)), {"node-stopped": _WARNING, "not-loaded": _GOOD}),
        (
            node.Node(configured=(("/config", "plugin=/opt/bin/cln-backup"),)),
            {"node-stopped": _WARNING, "not-important": _WARNING},
        ),
        (
            node.Node(configured=(_LINE, ("/config", "plugin=/a/backup.py"))),
            {"node-stopped": _WARNING, "loaded-twice": _BAD},
        ),
        (
            _RUNS._replace(wallet="postgres://ln:secret@db/ln"),
            _GOOD_NODE | {"postgres-wallet": _BAD},
        ),
    ],
)
def test_node(facts: node.Node, expected: dict[str, Level]) -> None:
    assert _of(node.judge(facts)) == expected
    assert "secret" not in str(list(node.judge(facts)))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (processes.Processes((5, 6), hidden=False), {"no-guard": _GOOD}),
        (processes.Processes((5,), hidden=False), {"no-guard": _BAD}),
        (processes.Processes((), hidden=True), {"no-guard": _WARNING}),
        (processes.Processes((), hidden=False), {}),
    ],
)
def test_processes(facts: processes.Processes, expected: dict[str, Level]) -> None:
    assert _of(processes.judge(facts)) == expected


_EXT4 = Mount("/mnt", "ext4", read_only=False, source="/dev/sdb1")
_PLACE = place.Place("/mnt/x", _EXT4, (), same_disk=False, write_cache="write back")
_OVERLAY = _EXT4._replace(kind="overlay")
_NFS = _EXT4._replace(kind="nfs4")
_WELL = {"same-disk": _GOOD, "no-directory-sync": _GOOD}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (_PLACE, _WELL),
        (_PLACE._replace(same_disk=True), _WELL | {"same-disk": _BAD}),
        (_PLACE._replace(same_disk=None), {"no-directory-sync": _GOOD}),
        (_PLACE._replace(mount=None), {"same-disk": _GOOD}),
        (
            _PLACE._replace(mount=_EXT4._replace(read_only=True)),
            {"same-disk": _GOOD, "read-only": _BAD},
        ),
        (
            _PLACE._replace(mount=_EXT4._replace(flushes=False)),
            {"same-disk": _GOOD, "no-barrier": _WARNING},
        ),
        (_PLACE._replace(mount=_OVERLAY), _WELL | {"in-container": _WARNING}),
        (
            _PLACE._replace(weaknesses=(Weakness("in-memory", "It is memory."),)),
            {"same-disk": _GOOD, "in-memory": _BAD},
        ),
        (
            _PLACE._replace(
                weaknesses=(
                    Weakness("shared-file-system", "It is shared."),
                    Weakness("fuse", "It is FUSE."),
                    Weakness("no-directory-sync", "It syncs no names."),
                )
            ),
            {
                "same-disk": _GOOD,
                "shared-file-system": _WARNING,
                "fuse": _WARNING,
                "no-directory-sync": _WARNING,
            },
        ),
        (
            _PLACE._replace(
                mount=_NFS,
                weaknesses=(Weakness("shared-file-system", "It is shared."),),
                reads_past_cache=False,
            ),
            {"same-disk": _GOOD, "shared-file-system": _WARNING, "no-direct-read": _WARNING},
        ),
        (_PLACE._replace(reads_past_cache=False), _WELL),
        (_PLACE._replace(replica="/mnt/replica"), _WELL | {"replica-beside-backup": _WARNING}),
    ],
)
def test_place(facts: place.Place, expected: dict[str, Level]) -> None:
    assert _of(place.judge(facts)) == expected


_ROOM = room.Room(1 << 40, 100 * _MIB, 1 << 40, 10 * _MIB)
_ENOUGH = {"room": _GOOD, "room-of-node": _GOOD}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (_ROOM, _ENOUGH),
        (_ROOM._replace(backup_bytes=99 * _MIB), _ENOUGH | {"room": _WARNING}),
        (_ROOM._replace(backup_bytes=-1), _ENOUGH | {"room": _BAD}),
        (_ROOM._replace(backup_bytes=63 * _MIB, growth_bytes=None), _ENOUGH | {"room": _WARNING}),
        (_ROOM._replace(node_bytes=73 * _MIB), _ENOUGH | {"room-of-node": _WARNING}),
        (_ROOM._replace(node_bytes=0), _ENOUGH | {"room-of-node": _BAD}),
        (room.Room(None, None, None, 0), {}),
    ],
)
def test_room(facts: room.Room, expected: dict[str, Level]) -> None:
    assert _of(room.judge(facts)) == expected


def _slots(*kinds: str) -> tuple[Key, ...]:
    return tuple(Key(kind, kind, 0.0) for kind in kinds)


_FILE = keys.KeyFile("/node/backup.key", 0o600)
_UNLOCKED = {"only-key-file": _GOOD}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (keys.Keys((), leaves=False), {}),
        (keys.Keys((), leaves=True), {"not-encrypted": _WARNING}),
        (keys.Keys(_slots("key-file"), leaves=True), {"only-key-file": _BAD}),
        (keys.Keys(_slots("key-file", "hsm-secret"), leaves=True), _UNLOCKED),
        (keys.Keys(_slots("passphrase"), leaves=False), _UNLOCKED),
        (keys.Keys((), leaves=False, readable=("/token",)), {"secret-readable": _WARNING}),
        (
            keys.Keys(_slots("hsm-secret"), leaves=False, file=_FILE),
            _UNLOCKED | {"key-file-readable": _GOOD},
        ),
        (
            keys.Keys(_slots("hsm-secret"), leaves=False, file=_FILE._replace(mode=0o644)),
            _UNLOCKED | {"key-file-readable": _WARNING},
        ),
        (
            keys.Keys(_slots("hsm-secret"), leaves=False, file=_FILE._replace(mode=None)),
            _UNLOCKED | {"key-file-missing": _BAD},
        ),
        (
            keys.Keys(_slots("hsm-secret"), leaves=False, file=_FILE._replace(beside=True)),
            _UNLOCKED | {"key-file-beside-backup": _WARNING},
        ),
    ],
)
def test_keys(facts: keys.Keys, expected: dict[str, Level]) -> None:
    assert _of(keys.judge_keys(facts)) == expected


_HSM = keys.HsmSecret("/node/hsm_secret", 0o400, has_database=True, copied_at=1.0)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (_HSM, {"hsm-secret-not-copied": _GOOD}),
        (_HSM._replace(copied_at=None), {"hsm-secret-not-copied": _WARNING}),
        (
            _HSM._replace(mode=0o440),
            {"hsm-secret-readable": _WARNING, "hsm-secret-not-copied": _GOOD},
        ),
        (_HSM._replace(copied_at=None, in_backup=True), {"hsm-secret-not-copied": _GOOD}),
        (_HSM._replace(mode=None), {"hsm-secret-missing": _BAD}),
        (_HSM._replace(mode=None, has_database=False), {}),
    ],
)
def test_hsm_secret(facts: keys.HsmSecret, expected: dict[str, Level]) -> None:
    assert _of(keys.judge_hsm_secret(facts)) == expected


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        (small_files.SmallFiles(wanted=True, has_some=True), _GOOD),
        (small_files.SmallFiles(wanted=True, has_some=False), _WARNING),
        (small_files.SmallFiles(wanted=True, has_some=True, trouble="It is full."), _WARNING),
        (small_files.SmallFiles(wanted=True, has_some=True, damaged="Damaged."), _WARNING),
        (small_files.SmallFiles(wanted=False, has_some=False), _GOOD),
    ],
)
def test_small_files(facts: small_files.SmallFiles, level: Level) -> None:
    assert _of(small_files.judge(facts)) == {"node-files": level}


_RELEASES = releases.Releases("0.2.0", "0.2.0", "v26.06.6", "3.11", "3.50")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (_RELEASES, {"other-release": _GOOD}),
        (_RELEASES._replace(running=None, lightningd=None), {"other-release": _GOOD}),
        (_RELEASES._replace(running="0.1.0"), {"other-release": _WARNING}),
        (_RELEASES._replace(lightningd="v25.12"), {"other-release": _GOOD}),
        (
            _RELEASES._replace(lightningd="v26.09rc1"),
            {"other-release": _GOOD, "lightningd-release": _WARNING},
        ),
        (_RELEASES._replace(lightningd="basedon-something"), {"other-release": _GOOD}),
    ],
)
def test_releases(facts: releases.Releases, expected: dict[str, Level]) -> None:
    assert _of(releases.judge(facts)) == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (clock.Clock(1000.0, {"the last change": 990.0}, True), {"clock-wrong": _GOOD}),
        (clock.Clock(1000.0, {"the last change": 1050.0}, None), {"clock-wrong": _GOOD}),
        (clock.Clock(1000.0, {"the last change": 1070.0}, True), {"clock-wrong": _WARNING}),
        (clock.Clock(1000.0, {}, False), {"clock-not-synchronised": _WARNING}),
    ],
)
def test_clock(facts: clock.Clock, expected: dict[str, Level]) -> None:
    assert _of(clock.judge(facts)) == expected


def _files(uid: int = 7, mode: int = 0o600, *, is_secret: bool = True) -> rights.Rights:
    return rights.Rights(7, (rights.File("/b", uid, mode, is_secret),))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (_files(), {"wrong-owner": _GOOD}),
        (_files(uid=0), {"wrong-owner": _BAD}),
        (_files(uid=5)._replace(node_uid=0), {"wrong-owner": _GOOD}),
        (_files(mode=0o640), {"others-may-read": _WARNING}),
        (_files(mode=0o640, is_secret=False), {"wrong-owner": _GOOD}),
        (_files(mode=0o620), {"others-may-write": _WARNING}),
    ],
)
def test_rights(facts: rights.Rights, expected: dict[str, Level]) -> None:
    assert _of(rights.judge(facts)) == expected


_STATUS = Status("dir:///b", 5, 5, 100, "transaction", 1.0, False, "02ab")
_OPENED = destination.Destination(frozenset(), _STATUS, node_id="02ab")
_OPENS = {"cannot-open": _GOOD}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (_OPENED, _OPENS),
        (_OPENED._replace(node_id=None), _OPENS),
        (_OPENED._replace(node_id="03cd"), _OPENS | {"another-nodes-backup": _BAD}),
        (_OPENED._replace(status=None, refused="It is gone."), {"cannot-open": _BAD}),
        (_OPENED._replace(status=None, refused="No key.", locked=True), {"locked": _WARNING}),
        (_OPENED._replace(notices=("Torn.",)), _OPENS | {"to-be-repaired": _WARNING}),
        (_OPENED._replace(notices=("Torn.",), runs=True), _OPENS),
        (
            _OPENED._replace(concessions=frozenset(Concession)),
            _OPENS
            | dict.fromkeys(("not-fenced", "not-durable", "not-private", "no-token"), _WARNING),
        ),
    ],
)
def test_destination(facts: destination.Destination, expected: dict[str, Level]) -> None:
    assert _of(destination.judge(facts)) == expected


_PROOFS = proofs.Proofs(
    100 * _DAY_S, runs=True, proven_version=5, proven_at=99 * _DAY_S, version=5, drilled_at=1.0
)
_PROVEN = {"not-proven": _GOOD, "never-drilled": _GOOD}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (_PROOFS, _PROVEN),
        (_PROOFS._replace(proven_at=None), _PROVEN | {"not-proven": _WARNING}),
        (_PROOFS._replace(version=6), _PROVEN),
        (_PROOFS._replace(version=6, runs=False), _PROVEN | {"not-proven": _WARNING}),
        (_PROOFS._replace(drilled_at=None), _PROVEN | {"never-drilled": _WARNING}),
        (_PROOFS._replace(checked_at=99 * _DAY_S), _PROVEN),
        (_PROOFS._replace(checked_at=60 * _DAY_S), _PROVEN | {"check-old": _WARNING}),
        (
            _PROOFS._replace(next_compaction="the log is large"),
            _PROVEN | {"compaction-due": _WARNING},
        ),
        (_PROOFS._replace(next_compaction="the log is large", compacting=True), _PROVEN),
        (_PROOFS._replace(compacts=True), _PROVEN),
        (_PROOFS._replace(compacts=False), _PROVEN | {"compaction-off": _WARNING}),
        (_PROOFS._replace(migration=3), _PROVEN),
        (_PROOFS._replace(rolls_forward=True), _PROVEN),
        (
            _PROOFS._replace(rolls_forward=True, runs=False),
            _PROVEN | {"to-be-rolled-forward": _WARNING},
        ),
        (_PROOFS._replace(migration=3, runs=False), _PROVEN | {"migration-open": _WARNING}),
    ],
)
def test_proofs(facts: proofs.Proofs, expected: dict[str, Level]) -> None:
    assert _of(proofs.judge(facts)) == expected


def test_leftovers() -> None:
    assert _of(leftovers.judge(leftovers.Leftovers((), 0, 0))) == {"leftovers": _GOOD}
    young = leftovers.Leftovers(("/b/dropped-5",), 0, 10)
    assert _of(leftovers.judge(young)) == {"leftovers": _GOOD}
    assert _of(leftovers.judge(young._replace(old=1))) == {"leftovers": _WARNING}


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        (write_test.WriteTest(50, 300_000, 1.0, 5.0), _GOOD),
        (write_test.WriteTest(50, 300_000, 101.0, 500.0), _WARNING),
        (BadUrl("A server has no room."), _WARNING),
        (StorageError("Cannot append."), _BAD),
    ],
)
def test_write_test(facts: write_test.WriteTest | BadUrl | StorageError, level: Level) -> None:
    assert _of(write_test.judge(facts)) == {"write-test": level}
