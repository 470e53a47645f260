"""The two parts of an append: what the node waits for, and the bookkeeping after its answer."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.model.change import Change
from cln_backup.model.errors import StorageError
from cln_backup.plugin import jsonrpc
from cln_backup.plugin.hook import Hook
from cln_backup.plugin.replicator import Replicator
from tests.histories import append, image, payment, rider, started_node, told, told_by

if TYPE_CHECKING:
    from pathlib import Path

_LATER = [payment(4), payment(5), rider(5, "PRAGMA foreign_keys = OFF;"), payment(6)]
_LAST = [payment(7), rider(6, "PRAGMA foreign_keys = ON;"), Change(6, image("a database"), None)]


def _url(directory: Path, kind: str) -> str:
    if kind != "dir, encrypted":
        return f"{kind}://{directory}/backup"
    key = directory / "key"
    key.write_bytes(os.urandom(32))
    return f"dir://{directory}/backup?key-file={key}"


@pytest.mark.parametrize("last", _LAST, ids=lambda change: change.kind.value)
@pytest.mark.parametrize("kind", ["file", "dir", "dir, encrypted"])
def test_process_that_dies_after_its_answer_leaves_nothing_undone(
    kind: str, last: Change, memory_path: Path
) -> None:
    url = _url(memory_path, kind)
    create_backend(url, None)
    append(url, [*started_node(), *_LATER])
    with open_writer(url) as writer:
        writer.store_change(last)
    assert told_by(url) == told([*started_node(), *_LATER, last])
    with open_reader(url) as reader:
        left = reader.standing

    (memory_path / "settled").mkdir()
    settled = _url(memory_path / "settled", kind)
    create_backend(settled, None)
    append(settled, [*started_node(), *_LATER])
    append(settled, [last])
    with open_reader(settled) as reader:
        assert left == reader.standing


def _segments(directory: Path) -> list[Path]:
    return sorted((directory / "backup").glob("log-*"))


def test_node_does_not_wait_for_the_segment_before_to_be_trimmed(memory_path: Path) -> None:
    url = _url(memory_path, "dir")
    create_backend(url, None)
    append(url, started_node())
    with open_writer(url) as writer:
        writer.store_change(payment(4))
        [first, _] = _segments(memory_path)
        untrimmed = first.stat().st_size
        writer.settle()
        assert first.stat().st_size < untrimmed
        writer.settle()
        writer.add_change(payment(5))
    assert told_by(url) == told([*started_node(), payment(4), payment(5)])


def _request(change: Change) -> jsonrpc.Call | jsonrpc.Message:
    assert change.transaction is not None
    params = {"data_version": change.version, "writes": list(change.transaction)}
    fields = {"jsonrpc": "2.0", "id": "cln:db_write#1", "method": "db_write", "params": params}
    return jsonrpc.decode(json.dumps(fields).encode())


def test_node_is_halted_at_its_next_call_if_the_bookkeeping_fails(
    memory_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url = _url(memory_path, "dir")
    create_backend(url, None)
    append(url, started_node())
    (memory_path / "backup.lock").write_text(json.dumps({"backend_url": url}))
    (memory_path / "backup.lock").chmod(0o600)
    logged: list[tuple[str, str]] = []
    replicator = Replicator(str(memory_path), lambda _: None)
    hook = Hook(replicator, lambda level, text: logged.append((level, text)))
    hook.was_called = True  # the log of this process stays as it is
    hook.answer(_request(payment(4)))
    assert '"result":"continue"' in capfd.readouterr().out
    [first, _] = _segments(memory_path)
    aside = first.rename(memory_path / "aside")
    first.symlink_to(aside)  # which nothing is written through
    hook.settle()
    assert logged == [("error", hook.halted)]
    assert hook.halted is not None
    assert "Cannot open segment" in hook.halted
    hook.answer(_request(payment(5)))
    assert '"result":"halt"' in capfd.readouterr().out
    with pytest.raises(StorageError, match="failed before"):
        replicator.db_write(5, list(payment(5).transaction or ()))
    replicator.close()
    aside.replace(first)
    assert told_by(url) == told([*started_node(), payment(4)])
