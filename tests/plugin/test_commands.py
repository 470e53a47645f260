"""Commands of an operator to a running node, and requests of lightningd to a plugin."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest

from simulator import content
from tests import programs
from tests.plugin.home import CAPTURES, PLUGIN, Home, processes_of
from tests.waiting import WAIT_S, wait_until

if TYPE_CHECKING:
    from pathlib import Path

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))
_GETMANIFEST = (
    b'{"jsonrpc":"2.0","id":"cln:getmanifest#1","method":"getmanifest",'
    b'"params":{"allow-deprecated-apis":false}}\n\n'
)


def test_status(home: Home) -> None:
    home.follows = True
    home.init()
    node = home.start(*_ROUTER, "--calls", "60", "--hold")
    home.wait_for_calls(60)
    status = home.call("backup-status")
    assert status["protected"] is True
    assert status["halted"] is None
    assert status["backend_url"] == home.url
    assert status["version"] == 58
    assert status["version_count"] == 60
    assert status["backupsize"] == json.loads(home.cli("status", "--json", home.url))["backupsize"]
    assert 0 <= status["last_change_age_s"] < 60
    assert status["last_compaction_at"] is None
    assert 0 < status["answer_p50_us"] <= status["answer_p99_us"]
    home.call("backup-compact", {"force": True})
    assert home.call("backup-status")["last_compaction_at"] > 0
    home.call("stop")
    home.end(node)
    assert json.loads((home.directory / "backup.state").read_text())["last_compaction_at"] > 0


def test_compactions_while_the_node_writes(home: Home, tmp_path: Path) -> None:
    home.follows = True
    home.init()
    node = home.start(*_ROUTER, "--calls", "500", "--rate", "150", "--hold")
    done = []
    for calls in (20, 150, 300):
        home.wait_for_calls(calls)
        done.append(home.call("backup-compact", {"force": True}))
        # The node continued meanwhile; the history before is one snapshot now.
        status = home.call("backup-status")
        assert status["version_count"] < status["version"] - calls + 10
    home.wait_for_calls(500)
    statistics = home.call("backup-compact", {"force": True})
    home.call("stop")
    home.end(node)
    assert statistics["after"]["version_count"] == 2
    if home.kind == "file":  # a directory keeps the segment in which its history continues
        # On a busy machine the node had written all before the last one.
        assert any(
            each["before"]["backupsize"] > each["after"]["backupsize"]
            for each in (*done, statistics)
        )
    assert home.log().count("Starting compaction") == 4
    home.require_same(home.database)
    # Who has compacted frees the old file by itself, which may outlast the node.
    wait_until(lambda: not _named(tmp_path, "compact"), "The compactions have left files.")


def _named(directory: Path, word: str) -> list[str]:
    """The names in a directory, however deep, that have a word in them."""
    found = (name for _, *names in os.walk(directory) for name in chain(*names))
    return [name for name in found if word in name]


def test_a_second_compaction_is_refused_and_the_first_goes_on(home: Home) -> None:
    home.init()
    node = home.start("--generate", "60", "--database-mb", "48", "--hold")
    home.wait_for_calls(60)
    asking = programs.start(
        *("simulator.client", home.directory, "backup-compact", '{"force": true}'),
        stdout=subprocess.PIPE,
    )
    wait_until(lambda: home.call("backup-status")["compacting"], home.log, pause_s=0)
    with pytest.raises(Exception, match="a compaction is running"):
        home.call("backup-compact", {"force": True})
    answer, _ = asking.communicate(timeout=WAIT_S)
    assert json.loads(answer)["after"]["version_count"] == 2
    home.call("stop")
    home.end(node)
    home.require_same(home.database)


def test_head_stays_droppable_through_a_compaction(home: Home) -> None:
    home.init()
    home.run(*_ROUTER, "--calls", "100", "--crash", "after-answer@99", code=None)
    home.cli("compact", "--force", home.url)
    home.run(*_ROUTER, "--variant", "--calls", "30")
    assert home.dropped() == ["98"]
    home.require_same(home.database)


def test_node_killed_during_a_compaction(home: Home) -> None:
    home.init()
    node = home.start("--generate", "5000", "--database-mb", "32", "--rate", "400")
    home.wait_for_calls(60)
    worker, _ = processes_of(node.pid)
    asking = programs.start(
        *("simulator.client", home.directory, "backup-compact", '{"force": true}'),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: home.call("backup-status")["compacting"], home.log, pause_s=0)
    os.kill(worker, 9)
    node.kill()
    node.communicate()
    asking.wait(timeout=WAIT_S)
    home.run("--generate", "5000", "--database-mb", "32", "--calls", "40")
    home.require_same(home.database)


def test_starting_touches_nothing(home: Home, tmp_path: Path) -> None:
    """Lightningd --help and a second lightningd start it in the live directory."""
    home.init()
    home.run(*_ROUTER, "--calls", "40")
    node = home.start(*_ROUTER, "--calls", "20", "--hold")
    home.wait_for_calls(60)
    before = _seen(tmp_path)
    done = subprocess.run(
        [PLUGIN], cwd=home.directory, input=_GETMANIFEST, capture_output=True, check=True
    )
    manifest = json.loads(done.stdout)["result"]
    assert _seen(tmp_path) == before
    assert manifest["dynamic"] is False
    assert {hook["name"] for hook in manifest["hooks"]} == {"db_write"}
    assert {option["name"] for option in manifest["options"]} == {
        "backup-destination",
        "backup-scratch-dir",
        "backup-compact",
        "backup-compact-ratio",
        "backup-compact-max-changes",
        "backup-compact-max-days",
        "backup-follower",
        "backup-replica-dir",
        "backup-alarm-apprise",
        "backup-alarm-webhook",
        "backup-alarm-command",
        "backup-alarm-ping",
        "backup-page",
        "backup-page-name",
    }
    assert {method["name"] for method in manifest["rpcmethods"]} == {
        "backup-status",
        "backup-compact",
    }
    assert "disable" not in manifest
    home.call("stop")
    home.end(node)
    home.require_same(home.database)


def _seen(base: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in base.rglob("*")
        if path.name != "lightningd.log"
    }


def test_the_unused_option_is_accepted_with_a_warning(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.init()
    home.run(*_ROUTER, "--calls", "30", "--option", "backup-destination=somewhere/over")
    assert (
        "The `--backup-destination` option is deprecated and will be removed in future versions "
        "of the backup plugin." in home.log()
    )


@pytest.mark.parametrize("important", [True, False])
def test_a_plugin_that_is_not_important_says_so_loudly(tmp_path: Path, important: bool) -> None:
    home = Home(tmp_path)
    home.init()
    node = home.start(*_ROUTER, "--calls", "30", "--hold", important=important)
    home.wait_for_calls(30)
    home.call("backup-status")  # by then listconfigs is answered
    home.call("stop")
    home.end(node)
    assert ("NOT LOADED AS IMPORTANT" in home.log()) is not important


@pytest.mark.parametrize("important", [True, False])
@pytest.mark.parametrize("call", ["", "exec "])
def test_wrapper_script_is_told_from_a_plugin_that_is_not_important(
    tmp_path: Path, call: str, important: bool
) -> None:
    """It was told NOT LOADED AS IMPORTANT: lightningd knows the wrapper's path, not ours."""
    home = Home(tmp_path)
    home.init()
    home.plugin = tmp_path / "wrapper"
    home.plugin.write_text(f'#!/bin/sh\n{call}"{PLUGIN}"\n')
    home.plugin.chmod(0o755)
    node = home.start(*_ROUTER, "--calls", "30", "--hold", important=important)
    home.wait_for_calls(30)
    home.call("backup-status")  # by then listconfigs is answered
    home.call("stop")
    home.end(node)
    assert ("NOT LOADED AS IMPORTANT" in home.log()) is not important


def test_a_wallet_in_postgresql_is_told_and_does_not_come_up(home: Home) -> None:
    """The hook is never called then: `init` comes with no `db_write` before it."""
    home.init()
    # while it starts, lightningd hears no `stop`, and a SIGTERM ends it at once
    node = home.start(*_ROUTER, "--before-init", "0", "--sigterm", "die")
    node.communicate(timeout=WAIT_S)
    assert node.returncode == -15
    assert "This node is NOT protected" in home.log()
    assert json.loads(home.cli("status", "--json", home.url))["version_count"] == 0


def test_shutdown_takes_the_late_writes_and_then_leaves(home: Home) -> None:
    home.init()
    report = home.run(*_ROUTER, "--calls", "80", "--late-writes", "5")
    assert report["late_calls"] == 5
    assert report["plugin_exit_s"] < 8
    home.require_same(home.database)


def test_a_commit_after_the_plugins_have_gone_is_a_gap_with_a_way_out(home: Home) -> None:
    home.init()
    home.set_options(on_gap="halt")
    home.run(*_ROUTER, "--calls", "80", "--after-plugin", "2")
    home.run(*_ROUTER, "--calls", "1", code=None)
    assert "Backup is out of date" in home.log()
    home.cli("snapshot", "--lightning-dir", str(home.directory))
    home.run(*_ROUTER, "--calls", "20")
    home.require_same(home.database)


def test_files_are_for_their_owner_only(home: Home, tmp_path: Path) -> None:
    os.umask(0)
    home.init()
    home.run(*_ROUTER, "--calls", "60", "--crash", "after-answer@59", code=None)
    home.run(*_ROUTER, "--calls", "10")
    home.restored()
    os.umask(0o022)
    for path in (*tmp_path.glob("backup*"), *tmp_path.glob("restored*"), *home.files()):
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


class Pipe:
    """A plugin process that is spoken to byte by byte."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [PLUGIN], cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)

    def answers(self, count: int) -> list[dict[str, Any]]:
        assert self._process.stdout is not None
        said = b""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            data = self._process.stdout.read(1 << 16)
            assert data, said
            said += data
            *whole, said = said.split(b"\n\n")
            found += [message for text in whole if "id" in (message := json.loads(text))]
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        assert self._process.wait(timeout=30) == 0
        self._process.stdout.close()


def _calls(count: int) -> list[bytes]:
    from tests import captured

    recorded = captured.changes(CAPTURES / "small" / "router.jsonl.xz")
    requests = []
    for number, change in zip(range(count), recorded, strict=False):
        params = {"data_version": change.version, "writes": change.transaction}
        request = {"jsonrpc": "2.0", "id": f"cln:db_write#{number}", "method": "db_write"}
        requests.append(json.dumps(request | {"params": params}).encode() + b"\n\n")
    return requests


def test_messages_cut_at_every_byte_and_many_at_once(home: Home) -> None:
    home.init()
    plugin = Pipe(home.directory)
    first, second, third, *rest = _calls(40)
    plugin.send(_GETMANIFEST + first)
    assert [answer["id"] for answer in plugin.answers(2)] == [
        "cln:getmanifest#1",
        "cln:db_write#0",
    ]
    for byte in second + third:
        plugin.send(bytes([byte]))
    assert len(plugin.answers(2)) == 2
    plugin.send(b"".join(rest))
    answers = plugin.answers(len(rest))
    assert [answer["result"] for answer in answers] == [{"result": "continue"}] * len(rest)
    plugin.close()
    assert '"version_count": 40' in home.cli("status", "--json", home.url)


def test_numbers_and_odd_strings_as_ids_are_repeated_as_written(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.init()
    plugin = Pipe(home.directory)
    plugin.send(b'{"jsonrpc":"2.0","id":17,"method":"getmanifest","params":{}}\n\n')
    plugin.send(b'{"id":"a\\u00e9\\"b","jsonrpc":"2.0","params":{},"method":"nonsense"}\n\n')
    number, odd = plugin.answers(2)
    assert number["id"] == 17
    assert odd["id"] == 'aé"b'
    assert "error" in odd
    plugin.close()


def test_lost_machine_comes_back_with_its_hsm_secret_alone(tmp_path: Path) -> None:
    """Only the encrypted directory is left, and `hsm_secret` on a piece of paper."""
    home = Home(tmp_path, "dir-encrypted")
    paper = tmp_path / "paper"
    paper.write_bytes(bytes(range(32)))
    shutil.copy(paper, home.directory / "hsm_secret")
    home.init()
    home.run(*_ROUTER, "--calls", "200")
    lost = tmp_path / "lost.sqlite3"
    home.database.rename(lost)
    shutil.rmtree(home.directory)
    home.directory.mkdir()
    backup, key = str(home.backup), home.directory / "backup.key"
    other = tmp_path / "other.key"
    other.write_bytes(bytes(32))
    said = home.cli("restore", "--key-file", str(other), backup, str(home.directory), code=17)
    assert "was never added" in said
    home.cli("restore", "--hsm-secret", str(paper), backup, str(home.directory))
    assert content.differences(lost, home.database) == []
    home.cli("key", "add", "--hsm-secret", str(paper), "--new-key-file", str(key), backup)
    lock = {"backend_url": f"dir://{backup}?key-file={key}"}
    (home.directory / "backup.lock").write_text(json.dumps(lock))
    home.run(*_ROUTER)
    home.require_same(home.database)


def test_restored_backup_goes_on_with_the_node(home: Home, tmp_path: Path) -> None:
    home.init()
    home.run(*_ROUTER, "--calls", "400")
    lost = tmp_path / "lost.sqlite3"
    home.database.rename(lost)
    home.cli("restore", home.url, str(home.directory))
    assert content.differences(lost, home.database) == []
    home.run(*_ROUTER)
    home.require_same(home.database)
