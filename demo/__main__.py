"""`python -m demo [ENGINE]`: a recorded node through the plugin, its loss, and its way back.

Ends with a table of figures; fails if the node that comes back differs by one statement. The
backup is in a directory, or in an engine that is started for it.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw

from demo.engines import ENGINES
from simulator import client, content

if TYPE_CHECKING:
    from demo.engines import Engine

_ROOT = Path(__file__).resolve().parent.parent
_CAPTURES = _ROOT / "tests" / "data" / "captures" / "small"
_BIN = Path(sys.executable).parent
_CALLS_A_SECOND = 400
_TROUBLE_AT = 300
_COMPACT_AT = 600
_COMPACTION_S = 600
"""A compaction gives way to every other process: on a busy machine it takes long."""
_COMPACTIONS = 10
_DROPPED = re.compile(r"before it committed version (\d+), which is dropped from the backup")


def _say(text: str) -> None:
    print(f"\n── {text}", flush=True)


def _cli(*arguments: str) -> None:
    print(f"$ {shlex.join(['backup-cli', *arguments])}", flush=True)
    subprocess.run([_BIN / "backup-cli", *arguments], check=True)


def _cli_json(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [_BIN / "backup-cli", *arguments, "--json"], check=True, capture_output=True
    )
    fields: dict[str, Any] = json.loads(done.stdout)
    return fields


def _wait_for_version(directory: Path, version: int, simulator: subprocess.Popen[bytes]) -> None:
    """Waits until the node has come to a data version, across its crashes."""
    while simulator.poll() is None:
        try:
            if client.call(directory, "simulator")["data_version"] >= version:
                return
        except OSError:  # between two lives
            pass
        time.sleep(0.02)


def _compacted(directory: Path) -> dict[str, Any]:
    """Compacts the backup; again, if the machine was too busy for an engine to be asked in time."""
    for _ in range(_COMPACTIONS):
        try:
            found: dict[str, Any] = client.call(
                directory, "backup-compact", timeout_s=_COMPACTION_S
            )
        except client.RpcError as error:
            print(f"   Not compacted: {error}")
            time.sleep(1)
        else:
            return found
    raise TimeoutError("the backup cannot be compacted")


def _data_version(database: Path) -> int:
    found = apsw.Connection(str(database)).execute(
        "SELECT intval FROM vars WHERE name = 'data_version'"
    )
    return int(found.get)


def _same(name: str, one: Path, other: Path) -> bool:
    found = content.differences(one, other)
    print(f"{name}: {'the same, statement for statement' if not found else 'DIFFERENT'}")
    for line in found:
        print(f"  {line}")
    return not found


def _run(work: Path, engine: Engine) -> bool:
    node = work / "node" / "regtest"
    node.mkdir(parents=True)
    url, secret = engine.url, engine.secret
    recorded = work / "recorded.sqlite3"
    with lzma.open(_CAPTURES / "router.sqlite3.xz") as file:
        recorded.write_bytes(file.read())

    if engine.at_start:
        _say(engine.at_start)
    _say("A new node gets a backup before its first start")
    _cli("init", *secret, "--lightning-dir", str(node), url)

    _say("The recorded router lives its day; it is killed (SIGKILL) twice on the way")
    print(
        "   after call 200 was answered and before it was committed; and inside SQLite's commit of "
        "call 450.\n   Both times it comes back by itself, and the plugin drops what was not "
        "committed."
    )
    report = work / "report.json"
    simulator = subprocess.Popen(
        [
            *(sys.executable, "-m", "simulator", str(node)),
            *("--capture", str(_CAPTURES / "router.jsonl.xz"), "--rate", str(_CALLS_A_SECOND)),
            *("--important-plugin", str(_BIN / "cln-backup"), "--quiet"),
            *("--supervise", "--crash", "after-answer@200", "--crash", "in-commit@450"),
            *("--hold", "--report", str(report)),
        ],
        cwd=_ROOT,
    )
    try:
        if engine.make_trouble is not None:
            _wait_for_version(node, _TROUBLE_AT, simulator)
            _say(engine.trouble)
            engine.make_trouble()
        _wait_for_version(node, _COMPACT_AT, simulator)
        _say("The backup is compacted while the node continues to write")
        statistics = _compacted(node)
        print(json.dumps(statistics))
        _wait_for_version(node, _data_version(recorded), simulator)
        status = client.call(node, "backup-status")
    finally:
        simulator.terminate()
        simulator.wait()
    if simulator.returncode != 0:
        print("the simulated node failed")
        return False
    log = (node / "lightningd.log").read_text(encoding="utf-8")
    for line in log.splitlines():
        if "cln-backup" in line and "Killing plugin" not in line:
            print(f"   {line.split(' ', 1)[1].strip()}")

    _say("The node's disk is lost; all that is left is the backup")
    own = work / "the-nodes-own.sqlite3"
    shutil.copyfile(node / "lightningd.sqlite3", own)
    shutil.rmtree(node)
    node.mkdir()
    _cli("status", *secret, url)
    started = time.perf_counter()
    _cli("restore", *secret, url, str(node))
    restored_s = time.perf_counter() - started

    _say("Is it the node?")
    restored = node / "lightningd.sqlite3"
    same = _same("the database that was lost    ", restored, own)
    same &= _same("the recorded node's database  ", restored, recorded)

    _say("Figures")
    processes = json.loads(report.read_text(encoding="utf-8"))["processes"]
    before, after = statistics["before"], statistics["after"]
    dropped = _DROPPED.findall(log)
    for name, value in (
        ("changes answered", sum(process["answered"] for process in processes)),
        ("lives of the node", len(processes)),
        ("dropped and set aside, at version", ", ".join(dropped)),
        ("answer, p50", f"{status['answer_p50_us']} µs"),
        ("answer, p99", f"{status['answer_p99_us']} µs"),
        ("backup before compaction", f"{before['backupsize']:,} bytes"),
        ("backup after compaction", f"{after['backupsize']:,} bytes"),
        ("restored data version", _cli_json("status", *secret, url)["version"]),
        ("restore, the whole command", f"{restored_s:.2f} s"),
        ("differences", "none" if same else "SEE ABOVE"),
    ):
        print(f"{name:<36}{value}")
    return same and len(processes) == 3 and len(dropped) == 2


def main(name: str = "dir") -> int:
    """Runs the demo in a directory that is removed at the end, with the backup in an engine."""
    if name not in ENGINES:
        print(f"Unknown engine {name!r}. The engines are {', '.join(ENGINES)}.", file=sys.stderr)
        return 2
    os.environ["PYTHONUNBUFFERED"] = "1"
    with (
        tempfile.TemporaryDirectory(prefix="cln-backup-demo-") as work,
        ENGINES[name](Path(work)) as engine,
    ):
        return 0 if _run(Path(work), engine) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
