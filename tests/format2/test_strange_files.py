"""Files in a backup's directory that do not belong there, or are missing, or have two names."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.model.change import Change
from cln_backup.model.errors import BackupError, Damaged, StorageError
from cln_backup.operations.restore import restore
from tests.format2.small import KINDS, SNAPSHOT, make_every_kind_of_file, url_of
from tests.histories import (
    append,
    payment,
    payments,
    prepared,
    snapshot_of,
    started_node,
    take_over,
    told,
    told_by,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = url_of("plain", tmp_path)
    create_backend(url, None)
    append(url, started_node())
    return url


@pytest.mark.parametrize("name", ["spare", "backup.writer"])
def test_nothing_is_written_through_a_link(url: str, name: str, tmp_path: Path) -> None:
    secret = tmp_path / "hsm_secret"
    secret.write_bytes(b"secret" * 1_000)
    link = tmp_path / "node" / name
    link.unlink(missing_ok=True)
    link.symlink_to(secret)
    with contextlib.suppress(StorageError):
        append(url, [payment(4)])
    assert secret.read_bytes() == b"secret" * 1_000
    if name == "spare":
        assert told_by(url) == told([*started_node(), payment(4)])


def test_spare_that_is_a_segment_since_its_claim_was_cut_becomes_no_second_one(
    url: str, tmp_path: Path
) -> None:
    node = tmp_path / "node"
    (node / "spare").write_bytes(bytes(1 << 18))
    os.link(node / "spare", node / "log-0000000002")  # as a kill leaves it, before the unlink
    with open_writer(url) as backend:
        backend.add_change(payment(4))
        assert (node / "log-0000000003").stat().st_nlink == 1
    assert told_by(url) == told([*started_node(), payment(4)])
    with open_reader(url) as backend:
        backend.check()


def test_segment_of_the_greatest_number_ends_the_backup_and_is_said(
    url: str, tmp_path: Path
) -> None:
    (tmp_path / "node" / "log-9999999999").write_bytes(bytes(1 << 18))
    with pytest.raises(StorageError, match="9999999999"):
        append(url, [payment(4)])
    assert told_by(url) == told(started_node())


def test_log_is_not_begun_anew_where_the_segment_behind_the_base_is_lost(
    url: str, tmp_path: Path
) -> None:
    append(url, payments(4, 5))
    with open_writer(url) as writer:
        with open_reader(url) as reader:
            staged = prepared(reader, Change(4, SNAPSHOT, None), foreign_keys=True)
        take_over(writer, staged)
    for path in (tmp_path / "node").glob("log-*"):
        path.unlink()
    for writable in (False, True):
        with pytest.raises(Damaged, match="in segment 2, which is missing"):
            (open_writer if writable else open_reader)(url)
    with pytest.raises(BackupError):
        append(url, [payment(5)])


@pytest.mark.parametrize("kind", KINDS)
def test_damage_in_a_later_snapshot_says_up_to_where_all_can_be_read(
    kind: str, tmp_path: Path
) -> None:
    """It said "Everything up to version 0", where everything before the snapshot could be read."""
    url = url_of(kind, tmp_path)
    create_backend(url, None)
    history = [*started_node(), *payments(4, 70)]
    append(url, history)
    append(url, [snapshot_of(history, tmp_path / "database"), payment(70)])
    (snapshot,) = (tmp_path / "node").glob("snapshot-*")
    content = bytearray(snapshot.read_bytes())
    content[len(content) // 2] ^= 1
    snapshot.write_bytes(content)
    with open_reader(url) as backend:
        with pytest.raises(Damaged, match="Everything up to version 69 can be read") as failed:
            restore(backend, str(tmp_path / "restored"))
        assert failed.value.good_version == 69
        with pytest.raises(Damaged) as found:
            backend.check()
        assert "up to version 0" not in str(found.value)
        restore(backend, str(tmp_path / "restored"), to=68)


def test_damage_before_which_nothing_is_good_says_nothing_of_a_version(tmp_path: Path) -> None:
    url = url_of("plain", tmp_path)
    make_every_kind_of_file(url)
    (base,) = (tmp_path / "node").glob("base-*")
    base.write_bytes(base.read_bytes()[:100])
    with pytest.raises(Damaged) as failed, open_reader(url):
        pass
    assert "up to version" not in str(failed.value)
