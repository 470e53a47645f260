"""`doctor --write-test`: a change's way through a scratch backup, which leaves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_writer, place_at
from cln_backup.backends.objects.stores import StorePlace
from cln_backup.model.errors import AlreadyExists, BadUrl
from cln_backup.operations.doctor.write_test import CHANGES, write_test
from tests import postgres_cluster, programs
from tests.histories import append, payment, payments, started_node, told_by
from tests.objects.engine import engine
from tests.small_disk import small_disk

if TYPE_CHECKING:
    from pathlib import Path


def _backup(url: str) -> str:
    create_backend(url, None)
    append(url, [*started_node(), *payments(4, 9)])
    return url


def _names(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith("spare")
    }


@pytest.mark.parametrize("scheme", ["dir", "file"])
def test_real_backup_is_not_touched(scheme: str, tmp_path: Path) -> None:
    url = _backup(f"{scheme}://{tmp_path}/backup")
    before = _names(tmp_path)
    done = programs.run("doctor", "--write-test", "--json", url)
    fields = json.loads(done.stdout)["write_test"]
    assert fields["changes"] == CHANGES
    assert fields["size_bytes"] > 300_000
    assert 0 < fields["p50_ms"] <= fields["p99_ms"]
    assert _names(tmp_path) == before


def test_directory_of_objects(tmp_path: Path) -> None:
    url = f"objects://{tmp_path}/backup"
    create_backend(url, None)
    before = _names(tmp_path)
    assert write_test(place_at(url)).changes == CHANGES
    assert _names(tmp_path) == before


def test_server_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadUrl, match="no room for a scratch backup"):
        write_test(place_at("socket:127.0.0.1:1"))
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    with pytest.raises(BadUrl, match="no room for a scratch backup"):
        write_test(place_at(f"socket:127.0.0.1:1?key-file={key}"))


def test_leftover_of_a_killed_test_is_said_and_removed(tmp_path: Path) -> None:
    place = tmp_path / "backup"
    url = _backup(f"dir://{place}")
    history = told_by(url)
    assert programs.start("tests.doctor.killed", url).wait() == -signal.SIGKILL
    [left] = place.glob(".write-test-*")
    (place / ".write-test-mine").mkdir()
    done = programs.run("doctor", "--write-test", url)
    assert str(left) in done.stdout
    assert [path.name for path in place.glob(".write-test-*")] == [".write-test-mine"]
    assert told_by(url) == history


def test_disk_without_room_is_a_finding(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        url = f"file://{disk}/backup"
        create_backend(url, None)
        done = programs.run("doctor", "--write-test", "--json", url)
        fields = json.loads(done.stdout)
        assert done.returncode == 31
        assert fields["write_test"] is None
        [found] = [each for each in fields["findings"] if each["code"] == "write-test"]
        assert found["level"] == "bad"
        assert "No space left" in found["text"]
        assert [path.name for path in disk.iterdir()] == ["backup"]


def test_database_is_as_before(tmp_path: Path) -> None:
    cluster = postgres_cluster.shared()
    node = postgres_cluster.node_of(tmp_path)
    url = _backup(cluster.url(node))
    history = told_by(url)
    assert programs.start("tests.doctor.killed", url).wait() == -signal.SIGKILL
    mine = "SELECT node FROM cln_backup.heads WHERE starts_with(node, %s)"
    assert len(cluster.sql(mine, node)) == 2, "the killed one has left nothing"
    assert write_test(place_at(url)).changes == CHANGES
    assert cluster.sql(mine, node) == [(node,)]
    assert told_by(url) == history


def test_bucket_is_as_before() -> None:
    url = _backup(engine().url())
    history = told_by(url)
    assert programs.start("tests.doctor.killed", url).wait() == -signal.SIGKILL
    beside = StorePlace(url.replace("?", ".write-test?"))
    with contextlib.closing(beside.bucket(10.0)) as bucket:
        assert bucket.list(), "the killed one has left nothing"
        assert write_test(place_at(url)).changes == CHANGES
        assert not bucket.list()
    assert told_by(url) == history


def test_bucket_beside_that_is_a_nodes_is_not_touched() -> None:
    url = _backup(engine().url())
    theirs = _backup(url.replace("?", ".write-test?"))
    with open_writer(theirs) as writer:
        writer.claim("02" + "ab" * 32)
        writer.add_change(payment(9))
    history = told_by(theirs)
    with pytest.raises(AlreadyExists):
        write_test(place_at(url))
    assert told_by(theirs) == history
