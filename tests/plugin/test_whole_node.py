"""A whole node back, as its operator does it: a backup, a bare machine, and words on paper."""

from __future__ import annotations

import json
import lzma
import os
from typing import TYPE_CHECKING, Any

from cln_backup.formats.hsm_secret import file_of_words, node_id_of, seed_of
from simulator import content
from tests import programs
from tests.plugin.home import CAPTURES, PLUGIN, Home
from tests.waiting import wait_for

if TYPE_CHECKING:
    from pathlib import Path

WORDS = "abandon " * 11 + "about"
RECORDED = "03cecbfdc68544cc596223b68ce0710c9e5d2c9cb317ee07822d95079acc703d31"


def capture_of_words(base: Path) -> Path:
    """The recording of a real node, as one whose secret has these words."""
    path = base / "node.jsonl"
    with lzma.open(CAPTURES / "small" / "payee.jsonl.xz") as recorded:
        found = recorded.read().replace(RECORDED.encode(), node_id_of(seed_of(WORDS)).encode())
    path.write_bytes(found)
    return path


FILES = {
    "regtest/ca.pem": b"-----BEGIN CERTIFICATE-----\nca\n",
    "regtest/ca-key.pem": b"-----BEGIN PRIVATE KEY-----\nkey\n",
    "regtest/client.pem": b"-----BEGIN CERTIFICATE-----\nclient\n",
    "regtest/emergency.recover": os.urandom(3000),
    "regtest/config": b"alias=whole\n",
    "config": f"network=regtest\nimportant-plugin={PLUGIN}\nstatictor=x/torblob=y\n".encode(),
}


def restore_node(*arguments: object, typed: str = "", code: int = 0) -> dict[str, Any]:
    """Runs the command as a script does; returns what it reported."""
    done = programs.run(
        *("restore", "--json", "--node", *arguments), input=typed, start_new_session=True
    )
    assert done.returncode == code, done.stderr + done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_whole_node_is_back_from_a_bare_machine_and_words_on_paper(tmp_path: Path) -> None:
    capture = capture_of_words(tmp_path)
    home = Home(tmp_path / "old", "dir-encrypted", follows=True)
    for name, text in FILES.items():
        (home.base / name).write_bytes(text)
    (home.directory / "hsm_secret").write_bytes(file_of_words(WORDS))
    home.init()
    key = home.url.partition("?")[2].partition("=")[2]
    # The follower keeps what has changed since `init`.
    (home.directory / "client.pem").write_bytes(b"renewed")
    node = home.start("--capture", str(capture), "--calls", "300", "--hold")
    home.wait_for_calls(300)
    wait_for(
        lambda: home.call("backup-status"),
        lambda status: status.get("node_files_at") is not None and status["protected"],
        home.log,
        pause_s=0.1,
    )
    new = tmp_path / "new" / "regtest"
    url = f"dir://{home.backup}"
    sure = ("--old-node-is-off", "--original")
    alive = restore_node(new, "--words", *sure, url, typed=f"{WORDS}\n\n", code=7)
    assert "is being written by process" in alive["error"]["message"]
    assert not (tmp_path / "new").exists()
    home.call("stop")
    home.end(node)

    planned = restore_node(new, "--words", "--dry-run", url, typed=f"{WORDS}\n\n")
    assert not (tmp_path / "new").exists()
    done = restore_node(new, "--words", *sure, url, typed=f"{WORDS}\n\n")

    for name, text in FILES.items():
        expected = b"renewed" if name == "regtest/client.pem" else text
        restored = new.parent / name
        assert restored.read_bytes() == expected, name
        assert restored.stat().st_mode & 0o777 == (home.base / name).stat().st_mode & 0o755
    assert (new / "hsm_secret").read_bytes() == file_of_words(WORDS)
    assert (new / "hsm_secret").stat().st_mode & 0o777 == 0o400
    assert content.differences(new / "lightningd.sqlite3", home.database) == []
    assert (done["hsm_secret"], done["node_id"]) == ("given", node_id_of(seed_of(WORDS)))
    assert planned["files"] == done["files"]
    lock = json.loads((new / "backup.lock").read_text())
    assert lock == {"backend_url": f"{url}?key-file={new}/backup.key"}
    assert (new / "backup.key").read_bytes() != (home.base / key).read_bytes()

    # The node starts there with what was restored, and nothing else.
    home.directory, home.base, home.follows = new, new.parent, False
    home.run("--capture", str(capture), "--calls", "320")
    assert "Versions match up" in home.log()
