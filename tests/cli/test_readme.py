"""The steps of the README, as they are written there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.histories import assert_same_database, build_database, started_node

_README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
_CLI = Path(sys.executable).with_name("backup-cli")


def _commands(heading: str) -> str:
    """What is to be typed in a section, as a script; lightningd's own tools are left out."""
    section = re.split(r"^## ", _README.partition(f"\n## {heading}\n")[2], flags=re.MULTILINE)[0]
    assert section, f"the README has no section {heading}"
    typed = re.sub(r"\\\n +", "", "\n".join(section.split("```")[1::2]))
    lines = [line.strip() for line in typed.splitlines()]
    return "\n".join(line for line in lines if not line.startswith("lightning-"))


def test_restoring_ends_with_the_node_and_without_the_key_of_the_lost_machine(
    tmp_path: Path,
) -> None:
    lost, new, backup, copy = (tmp_path / name for name in ("lost", "new", "backup", "copy"))
    lost.mkdir()
    copy.mkdir()
    expected = build_database(lost / "lightningd.sqlite3", started_node())
    (lost / "hsm_secret").write_bytes(bytes(range(32)))
    (copy / "hsm_secret").write_bytes(bytes(range(32)))
    subprocess.run([_CLI, "init", "--encrypt", "--lightning-dir", lost, backup], check=True)
    script = _commands("Restoring")
    for there, here in (
        ("backup-cli", shlex.quote(str(_CLI))),
        ("--words", f"--hsm-secret {shlex.quote(f'{copy}/hsm_secret')}"),
        ("/mnt/backup/node", str(backup)),
        ("~/.lightning/bitcoin", str(new)),
        ("/home/ln/.lightning/bitcoin", str(new)),
        ("/the/copy", str(copy)),
    ):
        assert there in script
        script = script.replace(there, here)
    done = subprocess.run(
        ["bash", "-ec", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, f"{script}\n{done.stderr}"
    assert_same_database(new / "lightningd.sqlite3", expected)
    assert (new / "hsm_secret").read_bytes() == (lost / "hsm_secret").read_bytes()

    url = json.loads((new / "backup.lock").read_text())["backend_url"]
    for unlocking, code in ([url], 0), (["--key-file", lost / "backup.key", backup], 17):
        found = subprocess.run([_CLI, "status", *unlocking], check=False)
        assert found.returncode == code


def test_what_one_searches_for_is_there() -> None:
    for phrase in (
        "lightning-hsmtool getsecret ~/.lightning/bitcoin/hsm_secret",  # the words on paper
        "lightning-hsmtool generatehsm ~/.lightning/bitcoin/hsm_secret",  # and back
        "`lightning-cli graceful`",
        "exactly one change older than the backup, put there by hand",
    ):
        assert phrase in _README
    for error in ("duplicate column name", "no such column", "Invalid bitcoin transaction bytes"):
        assert _README.count(f"`{error}`") == 2, "in the table, and where it is explained"
