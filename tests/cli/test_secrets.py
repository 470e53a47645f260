"""Secrets: questions on a terminal, and the handling of a secret given to `init`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from cln_backup.backends import create_backend
from tests import programs
from tests.histories import append, build_database, started_node
from tests.programs import CLI

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_WORDS = "abandon " * 11 + "about"
_CTRL_C = "\x03"
# A terminal of its own for a command, between the pipes to the test.
_TERMINAL = """
import os, pty, sys
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))
"""


def _on_a_terminal(*arguments: object, answers: Sequence[tuple[str, str]] = ()) -> tuple[int, str]:
    """Runs a command on a terminal; its exit code, and all that the terminal showed."""
    with subprocess.Popen(
        [sys.executable, "-c", _TERMINAL, CLI, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        shown, asked = b"", 0
        waiting = list(answers)
        while data := process.stdout.read(4096):
            shown += data
            if waiting and waiting[0][0].encode() in shown[asked:]:
                asked = len(shown)
                time.sleep(0.1)  # until the echo is off
                process.stdin.write((waiting.pop(0)[1] + "\n").encode())
    assert not waiting, (waiting, shown)
    return process.returncode, shown.decode().replace("\r", "")


def _json(*arguments: object, code: int = 0) -> dict[str, Any]:
    done = programs.run(*arguments, "--json", start_new_session=True)
    assert done.returncode == code, done.stderr + done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def node(tmp_path: Path) -> Path:
    directory = tmp_path / "node"
    directory.mkdir()
    build_database(directory / "lightningd.sqlite3", started_node())
    return directory


def test_new_passphrase_of_init_is_asked_for_twice_and_not_shown(
    node: Path, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    code, shown = _on_a_terminal(
        *("init", "--encrypt", "--passphrase", "--lightning-dir", node, backup),
        answers=[
            ("Passphrase:", "secret-1"), ("Repeat", "secret-2"),
            ("Passphrase:", "secret-1"), ("Repeat", "secret-1"),
        ],
    )  # fmt: skip
    assert code == 0, shown
    assert "secret-" not in shown
    assert "do not match" in shown
    code, shown = _on_a_terminal(
        "status", "--passphrase", backup, answers=[("Passphrase:", "secret-1")]
    )
    assert code == 0, shown
    assert "Repeat" not in shown


def test_secret_named_to_init_means_a_backup_that_the_node_can_unlock(
    node: Path, tmp_path: Path
) -> None:
    """It was made with this secret alone, and the node could not start on it."""
    passphrase, backup = tmp_path / "passphrase", tmp_path / "backup"
    passphrase.write_text("four words on paper\n")
    done = _json("init", "--passphrase-file", passphrase, "--lightning-dir", node, backup)
    url = json.loads((node / "backup.lock").read_text())["backend_url"]
    assert url == done["backend_url"] == f"dir://{backup}?key-file={node}/backup.key"
    assert done["keys"] == ["key-file", "passphrase"]
    assert _json("status", url)["version_count"] == 1
    assert _json("status", "--passphrase-file", passphrase, backup)["version_count"] == 1


def test_secret_named_to_init_without_a_node(tmp_path: Path) -> None:
    passphrase, backup = tmp_path / "passphrase", tmp_path / "backup"
    passphrase.write_text("four words on paper\n")
    done = _json("init", "--encrypt", "--passphrase-file", passphrase, backup)
    assert done["keys"] == ["passphrase"]


@pytest.mark.parametrize("encrypt", [[], ["--encrypt"]])
def test_secret_for_a_backup_that_cannot_be_encrypted_is_refused(
    encrypt: list[str], node: Path, tmp_path: Path
) -> None:
    passphrase, backup = tmp_path / "passphrase", tmp_path / "node.bkp"
    passphrase.write_text("four words on paper\n")
    secret = [*encrypt, "--passphrase-file", passphrase]
    error = _json("init", *secret, "--lightning-dir", node, f"file://{backup}", code=3)["error"]
    assert "These can be encrypted: a directory (dir:)" in error["message"]
    assert not backup.exists()
    assert [path.name for path in node.iterdir()] == ["lightningd.sqlite3"]


def test_server_that_cannot_be_reached_leaves_no_key_file(node: Path) -> None:
    url = "socket:127.0.0.1:1?deadline=1"  # nothing listens
    error = _json("init", "--encrypt", "--lightning-dir", node, url, code=15)["error"]
    assert "could not be reached" in error["message"]
    assert [path.name for path in node.iterdir()] == ["lightningd.sqlite3"]


def test_new_node_is_told_that_its_key_file_alone_unlocks_the_backup(tmp_path: Path) -> None:
    node, backup = tmp_path / "node", tmp_path / "backup"
    node.mkdir()
    code, shown = _on_a_terminal("init", "--encrypt", "--lightning-dir", node, backup)
    assert code == 0
    told = shown.partition("Only the key file unlocks the backup.")[2]
    (node / "hsm_secret").write_bytes(bytes(range(32)))
    command = told.partition("backup-cli ")[2].split("\n")[0]
    assert _json(*command.split())["added"] == "hsm-secret"
    assert _json("status", "--hsm-secret", node / "hsm_secret", backup)["version_count"] == 0


def test_node_with_a_secret_of_its_own_is_told_nothing_of_that(node: Path, tmp_path: Path) -> None:
    (node / "hsm_secret").write_bytes(bytes(range(32)))
    code, shown = _on_a_terminal("init", "--encrypt", "--lightning-dir", node, tmp_path / "backup")
    assert code == 0
    assert "Only the key file" not in shown


@pytest.fixture
def encrypted(node: Path, tmp_path: Path) -> Path:
    (node / "hsm_secret").write_bytes(bytes(32) + _WORDS.encode())
    _json("init", "--encrypt", "--lightning-dir", node, tmp_path / "backup")
    return tmp_path / "backup"


@pytest.mark.parametrize("words", [_WORDS, _WORDS.upper(), f"  {_WORDS.title()} "])
def test_words_may_be_typed_in_capitals(words: str, encrypted: Path) -> None:
    code, shown = _on_a_terminal(
        "status", "--words", encrypted, answers=[("Words", words), ("Passphrase", "")]
    )
    assert code == 0, shown
    assert "abandon" not in shown.lower()


def test_question_that_is_stopped_leaves_nothing_and_ends_its_line(
    encrypted: Path, tmp_path: Path
) -> None:
    key = tmp_path / "new.key"
    code, shown = _on_a_terminal(
        *("key", "add", "--words", "--new-key-file", key, encrypted),
        answers=[("Words", _CTRL_C)],
    )
    assert code == 130
    assert "\nError: Stopped." in shown
    assert not key.exists()


def test_key_file_of_an_addition_that_failed_is_taken_away(encrypted: Path, tmp_path: Path) -> None:
    key = tmp_path / "new.key"
    code, shown = _on_a_terminal(
        *("key", "add", "--words", "--new-key-file", key, encrypted),
        answers=[("Words", "zoo " * 11 + "wrong"), ("Passphrase", "")],
    )
    assert code == 17
    assert "mistyped" in shown
    assert not key.exists()


def test_key_file_that_was_there_stays_when_the_addition_fails(
    encrypted: Path, tmp_path: Path
) -> None:
    key = tmp_path / "old.key"
    key.write_bytes(bytes(32))
    assert _json("key", "add", "--new-key-file", key, encrypted, code=17)["error"]
    assert key.read_bytes() == bytes(32)


def test_question_without_anybody_to_answer_is_an_error_of_its_own(encrypted: Path) -> None:
    assert _json("status", "--passphrase", encrypted, code=17)["error"]["type"] == "Locked"


@pytest.mark.parametrize("case", ["no key", "no file", "passphrase"])
def test_node_that_cannot_unlock_its_backup_is_told_to_use_a_key_file(
    case: str, encrypted: Path, node: Path
) -> None:
    option = {
        "no key": "",
        "no file": f"?key-file={node}/nonsuch.key",
        "passphrase": f"?hsm-secret={node}/protected",
    }[case]
    (node / "protected").write_bytes(bytes(range(32)) + _WORDS.encode())
    message = _json("status", f"dir://{encrypted}{option}", code=17)["error"]["message"]
    assert "backup-cli key add --new-key-file PATH URL" in message
    assert "backup.lock" in message
    assert case != "no key" or "--words" in message


def test_passphrase_of_a_file_is_its_first_line_as_it_would_be_typed(
    node: Path, tmp_path: Path
) -> None:
    passphrase, backup = tmp_path / "passphrase", tmp_path / "backup"
    passphrase.write_text("typed by hand\r\nand a remark\n")
    _json("init", "--passphrase-file", passphrase, "--lightning-dir", node, backup)
    answers = [("Passphrase:", "typed by hand")]
    code, shown = _on_a_terminal("status", "--passphrase", backup, answers=answers)
    assert code == 0, shown


@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_change_is_one_change(number: int, tmp_path: Path) -> None:
    backup = f"dir://{tmp_path}/backup"
    create_backend(backup, None)
    append(backup, started_node()[:number])
    shown = programs.run("verify", "--no-replay", backup).stdout
    assert ("its 1 change was read" in shown) == (number == 1)
    assert ("changes were" in shown) == (number != 1)


def test_token_and_takeover_speak_json(tmp_path: Path) -> None:
    assert len(_json("token", tmp_path / "token")["hash"]) == 64
    assert _json("token", tmp_path / "token", code=5)["error"]["type"] == "AlreadyExists"
    assert _json("takeover", "socket:nonsense", code=3)["error"]["type"] == "BadUrl"
