"""A directory as a bucket, used by many threads as a server does."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from cln_backup.model.errors import StorageError
from cln_backup.storage.local_bucket import LocalBucket
from cln_backup.storage.remote_objects import RemoteObjects
from tests.storage import test_objects as every_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("guarantee", every_store.GUARANTEES)
def test_guarantee_of_every_store(guarantee: Callable[..., None], tmp_path: Path) -> None:
    guarantee(RemoteObjects(LocalBucket(str(tmp_path))))


def test_threads_that_store_at_the_same_time_do_not_remove_each_others_files(
    memory_path: Path,
) -> None:
    """They once wrote into one unfinished file."""
    bucket = LocalBucket(str(memory_path))
    contents = {f"log-{number}": os.urandom(64) for number in range(400)}
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda one: bucket.put_new(*one), contents.items()))
    for key, content in contents.items():
        found = bucket.read(key, 0, 99)
        assert found is not None
        assert found.content == content
    assert {path.name for path in memory_path.iterdir()} == set(contents)


def test_of_many_racers_exactly_one_wins(memory_path: Path) -> None:
    bucket = LocalBucket(str(memory_path))
    for number in range(50):
        contents = [os.urandom(32) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            won = list(pool.map(lambda one: bucket.put_new(f"race-{number}", one), contents))  # noqa: B023
        found = bucket.read(f"race-{number}", 0, 99)
        assert found is not None
        winners = [content for content, one in zip(contents, won, strict=True) if one]
        assert winners == [found.content]


def test_what_an_interrupted_write_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    bucket = LocalBucket(str(tmp_path))
    for name, age_s in (("new", 0), ("old", 7200)):
        path = tmp_path / f".unfinished.object-{name}"
        path.write_bytes(b"half")
        at = path.stat().st_mtime - age_s
        os.utime(path, (at, at))
    bucket.remove_unfinished()
    assert [path.name for path in tmp_path.iterdir()] == [".unfinished.object-new"]
    assert bucket.list() == []


def test_removal_of_what_is_gone_is_no_error(tmp_path: Path) -> None:
    bucket = LocalBucket(str(tmp_path))
    bucket.put_new("parts/a/1", b"one")
    bucket.delete(["parts/a/1", "parts/a/1", "parts/b/1", "log-1"])
    assert bucket.list() == []


def test_directory_that_cannot_be_looked_at_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    """A backup that cannot be read must not look like none."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    bucket = LocalBucket(str(loop))
    with pytest.raises(StorageError):
        bucket.list()
    with pytest.raises(StorageError):
        bucket.read("log-1", 0, 9)
