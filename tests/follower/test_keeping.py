"""The follower keeps the node's small files in the backup, when they change and not too often."""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, place_at
from cln_backup.backends.opening import Opening
from cln_backup.follower import keeping
from cln_backup.follower.keeping import NodeFilesKeeper
from cln_backup.follower.messages import SAYS, Backup, NodeDirectory, Progress, Start
from cln_backup.model.node_files import Wanted
from cln_backup.process.child import Child
from cln_backup.replay.beside import call
from tests.histories import append, started_node
from tests.waiting import WAIT_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cln_backup.backends.contract import Reader
    from cln_backup.follower.messages import Said


class Node:
    """A node's directory, and its backup."""

    def __init__(self, base: Path, *, is_encrypted: bool = True, scheme: str = "dir") -> None:
        self.directory = base / "lightning" / "regtest"
        self.directory.mkdir(parents=True)
        self.write("config", "alias=x\n")
        self.write("emergency.recover", "1")
        key = base / "key"
        key.write_bytes(bytes(32))
        self.backup = base / "node"
        self.url = f"{scheme}://{self.backup}" + (f"?key-file={key}" if is_encrypted else "")
        create_backend(self.url, None)
        append(self.url, started_node())

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def wanted(self, wanted: Wanted | None = None) -> NodeDirectory:
        return NodeDirectory(str(self.directory), wanted or Wanted())

    def sets(self) -> int:
        """The number of the newest set."""
        numbers = [int(path.name[6:]) for path in self.backup.glob("files-*")]
        return max(numbers, default=0)

    def kept(self, name: str) -> bytes | None:
        with place_at(self.url).open_reader() as reader:
            assert reader.kept_files is not None
            newest = reader.kept_files.newest()
            assert newest is not None
            file = newest.files.named(f"network/{name}")
            return None if file is None else file.content


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def reader(node: Node) -> Iterator[Reader]:
    with place_at(node.url).open_reader() as opened:
        yield opened


def look(keeper: NodeFilesKeeper, reader: Reader) -> None:
    """A look when the time for it has come."""
    keeper._look_at = 0.0
    keeper.look(reader)


def test_set_is_stored_at_once_and_then_only_when_files_change(node: Node, reader: Reader) -> None:
    keeper = NodeFilesKeeper(node.wanted(), call)
    look(keeper, reader)
    assert node.sets() == 1
    stored_at, trouble = keeper.state
    assert stored_at is not None
    assert trouble is None
    look(keeper, reader)
    assert node.sets() == 1
    node.write("config", "alias=y\n")
    keeper.look(reader)  # it is not time yet
    assert node.sets() == 1
    look(keeper, reader)
    assert node.sets() == 2
    assert node.kept("config") == b"alias=y\n"


def test_next_process_stores_nothing_that_is_there(node: Node, reader: Reader) -> None:
    look(NodeFilesKeeper(node.wanted(), call), reader)
    keeper = NodeFilesKeeper(node.wanted(), call)
    look(keeper, reader)
    assert node.sets() == 1
    assert keeper.state[0] is not None


def test_emergency_file_waits_and_a_certificate_does_not(
    node: Node, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = NodeFilesKeeper(node.wanted(), call)
    look(keeper, reader)
    node.write("emergency.recover", "22")
    look(keeper, reader)
    assert node.sets() == 1
    node.write("client.pem", "new")
    look(keeper, reader)
    assert node.sets() == 2
    assert node.kept("emergency.recover") == b"22"
    node.write("emergency.recover", "333")
    look(keeper, reader)
    assert node.sets() == 2
    monkeypatch.setattr(keeping, "OFTEN_S", 0.0)
    look(keeper, reader)
    assert node.sets() == 3


def test_failure_is_trouble_and_is_tried_again(node: Node, reader: Reader) -> None:
    keeper = NodeFilesKeeper(node.wanted(), call)
    away = node.backup.with_name("away")
    node.backup.rename(away)
    look(keeper, reader)
    look(keeper, reader)
    assert keeper.state[0] is None
    assert "node" in str(keeper.state[1])
    away.rename(node.backup)
    look(keeper, reader)
    assert keeper.state[1] is None
    assert node.sets() == 1


def test_plain_backup_gets_files_only_if_they_are_wanted(tmp_path: Path) -> None:
    node = Node(tmp_path, is_encrypted=False)
    with place_at(node.url).open_reader() as reader:
        look(NodeFilesKeeper(node.wanted(), call), reader)
        assert node.sets() == 0
        look(NodeFilesKeeper(node.wanted(Wanted(keep=True)), call), reader)
        assert node.sets() == 1


def test_encrypted_backup_gets_none_if_that_is_wanted(node: Node, reader: Reader) -> None:
    look(NodeFilesKeeper(node.wanted(Wanted(keep=False)), call), reader)
    assert node.sets() == 0


def test_process_of_the_follower_keeps_the_files_and_says_so(tmp_path: Path) -> None:
    node = Node(tmp_path, scheme="objects")
    backup = Backup("", Opening(node.url), str(tmp_path / "replica"), None, node.wanted())
    child: Child[Said] = Child(
        "cln_backup.follower.process", Start([backup], []), SAYS, work="follows"
    )
    try:
        until = time.monotonic() + WAIT_S
        said: Said | None = None
        while not (isinstance(said, Progress) and said.node_files_at is not None):
            assert select.select([child], [], [], until - time.monotonic())[0], said
            said = child.step() or said
    finally:
        child.close()
        child.wait(WAIT_S)
    assert node.kept("config") == b"alias=x\n"
