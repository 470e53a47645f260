"""The node as a plugin sees it, and the node's reaction to plugins that break the protocol."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from simulator import content
from simulator.build import build_database
from simulator.client import RpcError
from simulator.load import START_CALLS, Load, generate
from simulator.settings import Exit
from simulator.wire import Message, MessageStream
from tests.simulator.simulated_node import Setup
from tests.waiting import wait_until, wait_until_ended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[..., None]

CALLS = 15
TRANSACTIONS = CALLS - START_CALLS
GENERATE = ("--generate", str(TRANSACTIONS))


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


@pytest.fixture
def held(setup: Setup) -> Iterator[Start]:
    """Start a node that stays, and stop it when the test is over."""
    processes = []

    def start(*arguments: str) -> None:
        processes.append(setup.start(*GENERATE, "--hold", *arguments))
        setup.wait_for_calls(CALLS)

    yield start
    for process in processes:
        process.terminate()
        setup.end(process)


def assert_at(setup: Setup, tmp_path: Path, until: int | None = None) -> None:
    """Compare the node's database with the generated load up to a version."""
    expected = tmp_path / "expected.sqlite3"
    build_database(generate(Load(TRANSACTIONS)), expected, until=until)
    assert content.differences(setup.database, expected) == []


def test_messages_come_in_lightningds_order(setup: Setup, tmp_path: Path) -> None:
    ended = setup.run(*GENERATE, "--plugin", setup.plugin(), "--before-init", "4")
    assert ended.code == 0
    methods = [message["method"] for message in setup.messages() if "method" in message]
    assert methods == ["getmanifest", *["db_write"] * 4, "init", *["db_write"] * (CALLS - 4)]
    first = setup.messages()[0]
    assert first["id"] == "cln:getmanifest#1"
    assert first["params"] == {"allow-deprecated-apis": False}
    assert first["cwd"] == str(setup.directory)
    ids = [message["id"] for message in setup.messages("db_write")]
    assert all(re.fullmatch(r"cln:db_write#\d+", each) for each in ids)
    assert len(set(ids)) == CALLS
    assert setup.versions()[:6] == [1, 1, 2, 2, 3, 4]
    assert_at(setup, tmp_path)


def test_init_comes_after_the_calls_of_a_short_process(setup: Setup) -> None:
    assert setup.run("--generate", "0", "--plugin", setup.plugin()).code == 0
    methods = [message["method"] for message in setup.messages() if "method" in message]
    assert methods == ["getmanifest", *["db_write"] * START_CALLS, "init"]


def test_calls_go_on_while_init_is_not_answered(setup: Setup) -> None:
    plugin = setup.plugin(init="after-call")
    ended = setup.run(*GENERATE, "--plugin", plugin, "--before-init", "2", "--during-init", "3")
    assert ended.code == 0
    methods = [message["method"] for message in setup.messages() if "method" in message]
    assert methods[3:5] == ["init", "db_write"]


def test_init_tells_what_lightningd_tells(setup: Setup) -> None:
    option = ("--option", "backup-destination=file:///backup")
    assert setup.run(*GENERATE, "--plugin", setup.plugin(), *option).code == 0
    (init,) = setup.messages("init")
    configuration = init["params"]["configuration"]
    assert configuration["lightning-dir"] == str(setup.directory)
    assert configuration["rpc-file"] == "lightning-rpc"
    assert configuration["startup"] is True
    assert configuration["network"] == "regtest"
    assert set(configuration["feature_set"]) == {"init", "node", "channel", "invoice"}
    assert init["params"]["options"] == {
        "backup-destination": "file:///backup",
        "backup-count": 3,
    }


def test_an_option_of_nobody_stops_the_start(setup: Setup) -> None:
    ended = setup.run(*GENERATE, "--plugin", setup.plugin(), "--option", "backup-color=red")
    assert ended.code == Exit.PLUGIN
    assert "--backup-color: unrecognized option" in ended.stderr
    assert not setup.database.exists()


def test_writes_reach_the_plugin_unchanged(setup: Setup) -> None:
    assert setup.run("--generate", "60", "--invalid-utf8", "--plugin", setup.plugin()).code == 0
    told = [message["params"]["writes"] for message in setup.messages("db_write")]
    assert told == [list(call.writes) for call in generate(Load(60, stray_bytes=True))]
    assert "\udce9" in json.dumps(told, ensure_ascii=False)


def test_request_and_answers_larger_than_the_pipes(setup: Setup) -> None:
    sizes = ("--blob-bytes", "1000000")
    ended = setup.run("--generate", "8", *sizes, "--plugin", setup.plugin(chatty=""))
    assert ended.code == 0
    assert max(message["bytes"] for message in setup.messages("db_write")) > 500_000


def test_an_answer_needs_no_separator_and_may_come_in_pieces(setup: Setup) -> None:
    ended = setup.run(*GENERATE, "--plugin", setup.plugin(no_separator=7))
    assert (ended.code, ended.report["answered"]) == (0, CALLS)


def test_report_counts_and_measures(setup: Setup) -> None:
    ended = setup.run(*GENERATE, "--plugin", setup.plugin())
    report = ended.report
    assert (report["answered"], report["committed"]) == (CALLS, CALLS - 2)
    assert (report["unprotected_commits"], report["exit_code"]) == (0, 0)
    assert report["exit_reason"] == "all calls made"
    assert 0 < report["p50_us"] <= report["p99_us"] <= report["max_us"]
    assert 0 < report["spawn_to_manifest_us"] < report["spawn_to_first_db_write_us"]


def test_rate_until_and_number_of_calls(setup: Setup) -> None:
    started_s = time.monotonic()
    plugin = ("--plugin", setup.plugin())
    assert setup.run("--generate", "50", *plugin, "--rate", "50", "--until", "20").code == 0
    assert time.monotonic() - started_s > 0.4
    assert setup.versions()[-1] == 20
    setup.forget()
    assert setup.run("--generate", "50", *plugin, "--calls", "3").code == 0
    assert setup.versions() == [21, 22, 23]


def test_pid_file_is_locked_and_removed(setup: Setup, held: Start) -> None:
    held("--plugin", setup.plugin())
    pid = int(setup.pid_file.read_text())
    assert pid != os.getpid()
    with setup.pid_file.open("r+b") as file, pytest.raises(BlockingIOError):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    other = setup.run(*GENERATE, "--plugin", setup.plugin(), "--report", "/dev/null")
    assert other.code == Exit.PID_FILE
    assert "Error locking PID file" in other.stderr
    assert len(setup.messages("getmanifest")) == 2  # the plugin was started all the same
    setup.call("stop")
    wait_until_ended(pid)
    assert not setup.pid_file.exists()


def test_pid_file_may_lie_elsewhere_or_nowhere(setup: Setup, tmp_path: Path) -> None:
    plugin = ("--plugin", setup.plugin(die_in=3))
    elsewhere = tmp_path / "elsewhere.pid"
    assert setup.run(*GENERATE, *plugin, "--pid-file", str(elsewhere)).code != 0
    assert elsewhere.exists()  # a node that did not end cleanly leaves it
    assert setup.run(*GENERATE, *plugin, "--pid-file", "none").code != 0
    assert not setup.pid_file.exists()


def test_manifest_only_touches_nothing(setup: Setup) -> None:
    ended = setup.run("--plugin", setup.plugin(), "--manifest-only", "--log-file", "none")
    assert ended.code == 0
    assert setup.messages()[0]["method"] == "getmanifest"
    assert list(setup.directory.iterdir()) == []


# The plugin ends or is removed


def test_idle_death_of_a_plugin_leaves_the_node_unprotected(setup: Setup, tmp_path: Path) -> None:
    ended = setup.run(*GENERATE, "--plugin", setup.plugin(), "--crash", "kill-plugin@12")
    assert ended.code == 0
    assert ended.report["unprotected_commits"] == CALLS - 12
    assert len(setup.messages("db_write")) == 12
    assert re.search(r"INFO +plugin-\S+: Killing plugin: exited during normal op", setup.log())
    assert_at(setup, tmp_path)


def test_idle_death_of_an_important_plugin_stops_the_node(setup: Setup, tmp_path: Path) -> None:
    plugin = setup.plugin()
    ended = setup.run(*GENERATE, "--important-plugin", plugin, "--crash", "kill-plugin@12")
    assert ended.code == Exit.PLUGIN
    assert "Plugin marked as important, shutting down lightningd!" in setup.log()
    assert ended.report["unprotected_commits"] == 0
    assert not setup.pid_file.exists()
    assert_at(setup, tmp_path, until=10)


@pytest.mark.parametrize("when", ["die-in", "kill", "kill-later"])
def test_death_inside_a_call_stops_the_node(when: str, setup: Setup, tmp_path: Path) -> None:
    arguments = {
        "die-in": ("--plugin", setup.plugin(die_in=13)),
        "kill": ("--plugin", setup.plugin(silent=13), "--crash", "kill-plugin@12:when=sent"),
        "kill-later": (
            "--plugin",
            setup.plugin(silent=13),
            "--crash",
            "kill-plugin@12:delay-ms=50",
        ),
    }[when]
    ended = setup.run(*GENERATE, *arguments)
    assert ended.code == Exit.PLUGIN_IN_HOOK
    assert ended.report["exit_reason"].startswith("fatal")
    assert setup.pid_file.exists()
    assert_at(setup, tmp_path, until=10)


def test_someone_else_on_the_pipes_keeps_the_death_from_the_node(
    setup: Setup, tmp_path: Path
) -> None:
    ended = setup.run(*GENERATE, "--plugin", setup.plugin(guard=""), "--crash", "kill-plugin@1")
    assert ended.code == Exit.REFUSED
    assert "the worker is dead" in ended.stderr
    assert_at(setup, tmp_path, until=1)


@pytest.mark.parametrize("where", ["manifest", "init"])
@pytest.mark.parametrize("kind", ["--plugin", "--important-plugin"])
def test_disable_overrides_importance(where: str, kind: str, setup: Setup) -> None:
    ended = setup.run(*GENERATE, kind, setup.plugin(disable=where), "--before-init", "5")
    assert ended.code == 0
    seen = 5 if where == "init" else 0
    assert len(setup.messages("db_write")) == seen
    # Two of the first five calls are riders, which are not commits.
    assert ended.report["unprotected_commits"] == CALLS - 2 - (3 if seen else 0)
    assert "disabled itself" in setup.log()


def test_a_plugin_without_the_hook_protects_nothing(setup: Setup) -> None:
    ended = setup.run(*GENERATE, "--plugin", setup.plugin(no_hook=""))
    assert (ended.code, ended.report["answered"]) == (0, 0)
    assert ended.report["unprotected_commits"] == CALLS - 2


@pytest.mark.parametrize("kind", ["--plugin", "--important-plugin"])
def test_a_bad_manifest_removes_the_plugin(kind: str, setup: Setup) -> None:
    ended = setup.run(*GENERATE, kind, setup.plugin(bad_manifest=""))
    assert ended.code == (0 if kind == "--plugin" else Exit.PLUGIN)
    assert '"result.options" was not found in the manifest' in setup.log()
    assert setup.messages("db_write") == []


@pytest.mark.parametrize("slow", ["slow_manifest", "init"])
def test_a_start_that_takes_too_long_stops_the_node(slow: str, setup: Setup) -> None:
    plugin = setup.plugin(**{slow: "never" if slow == "init" else 60})
    ended = setup.run(*GENERATE, "--plugin", plugin, "--start-timeout", "0.3")
    assert ended.code == Exit.PLUGIN
    assert "Killing plugin: timed out before replying to " in setup.log()
    assert "Can't recover from plugin failure, terminating." in ended.stderr


def test_a_program_that_is_not_there(setup: Setup) -> None:
    ended = setup.run(*GENERATE, "--plugin", "/nowhere/plugin")
    assert ended.code == Exit.PLUGIN
    assert "error starting plugin 'plugin'" in ended.stderr


@pytest.mark.parametrize(
    ("fault", "logged"),
    [
        ({"malformed": 13}, "Failed to parse RPC JSON response"),
        ({"bad_level": 12}, 'Unknown log-level "loud"'),
        ({"no_message": 12}, 'doesn\'t have a string "message" field'),
    ],
)
def test_a_plugin_that_breaks_the_protocol_is_killed(
    fault: dict[str, int], logged: str, setup: Setup
) -> None:
    ended = setup.run(*GENERATE, "--plugin", setup.plugin(**fault))
    # Before an answer it takes the node with it; after one the answer counts.
    assert ended.code == (Exit.PLUGIN_IN_HOOK if "malformed" in fault else 0)
    assert logged in setup.log() + ended.stderr
    assert len(setup.messages("db_write")) == list(fault.values())[0]  # noqa: RUF015


def test_an_answer_to_nothing_is_passed_over(setup: Setup) -> None:
    ended = setup.run(*GENERATE, "--plugin", setup.plugin(unknown_id=7))
    assert (ended.code, ended.report["answered"]) == (0, CALLS)


@pytest.mark.parametrize("how", ["refuse", "error"])
def test_anything_but_continue_stops_the_node_uncommitted(
    how: str, setup: Setup, tmp_path: Path
) -> None:
    ended = setup.run(*GENERATE, "--plugin", setup.plugin(**{how: 13}))
    assert ended.code == Exit.REFUSED
    assert ("it hurts" if how == "refuse" else '"message":"no"') in ended.stderr
    assert_at(setup, tmp_path, until=10)


# Logs


def test_log_lines_look_like_lightningds(setup: Setup) -> None:
    plugin = setup.plugin(log=3, own_topic=4)
    assert setup.run(*GENERATE, "--plugin", plugin, "--plugin-name", "recorder").code == 0
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    lines = setup.log().splitlines()
    assert all(re.match(f"{stamp} ", line) for line in lines)
    assert [line.partition(" ")[2] for line in lines][:11] == [
        "TRACE   plugin-recorder: at trace",
        "DEBUG   plugin-recorder: at debug",
        "INFO    plugin-recorder: at info",
        "UNUSUAL plugin-recorder: at unusual",
        "**BROKEN** plugin-recorder: at broken",
        "UNUSUAL plugin-recorder: at warn",
        "**BROKEN** plugin-recorder: at ERROR",
        "INFO    plugin-recorder: two",
        "INFO    plugin-recorder: lines, naïve",
        "INFO    plugin-recorder: no level",
        lines[10].partition(" ")[2],
    ]
    assert 'notification to topic "my_topic" it hasn\'t declared' in lines[10]


# The RPC socket


def test_own_commands(setup: Setup, held: Start) -> None:
    held("--important-plugin", setup.plugin(), "--option", "backup-destination=x")
    info = setup.call("getinfo")
    assert info["network"] == "regtest"
    assert info["lightning-dir"] == str(setup.directory)
    configs = setup.call("listconfigs")["configs"]
    assert configs["important-plugin"] == {
        "values_str": [setup.plugin()],
        "sources": ["cmdline"],
    }
    assert configs["plugin"] == {"values_str": [], "sources": []}
    assert configs["backup-destination"] == {
        "value_str": "x",
        "source": "cmdline",
        "plugin": setup.plugin(),
    }
    assert configs["backup-count"]["value_int"] == 3
    assert configs["wallet"]["value_str"] == f"sqlite3://{setup.database}"
    assert list(setup.call("listconfigs", {"config": "wallet"})["configs"]) == ["wallet"]
    for method, params, code in (("listconfigs", ["x"], -32602), ("nothing", {}, -32601)):
        with pytest.raises(RpcError) as refused:
            setup.call(method, params)
        assert refused.value.code == code


def test_a_plugins_commands_are_passed_on(setup: Setup, held: Start) -> None:
    held("--plugin", setup.plugin())
    assert setup.call("echo", {"a": ["ä", 1]}) == {"said": {"a": ["ä", 1]}}
    (request,) = setup.messages("echo")
    assert re.fullmatch(r"cli:1/cln:echo#\d+", request["id"])


def test_a_plugins_answer_may_wait_while_calls_go_on(setup: Setup) -> None:
    node = setup.start("--generate", "100", "--rate", "40", "--plugin", setup.plugin(), "--hold")
    answers: list[object] = []
    setup.wait_for_calls(12)
    thread = threading.Thread(target=lambda: answers.append(setup.call("answer-later")))
    thread.start()
    wait_until(lambda: setup.messages("answer-later"), "the plugin was not asked")
    made = setup.call("simulator")["next_call"]
    setup.wait_for_calls(made + 5)
    thread.join()
    assert answers == [{}]  # this plugin answers with the next call
    setup.call("stop")
    assert setup.end(node).code == 0


def test_progress_goes_to_who_asked_for_it(setup: Setup, held: Start) -> None:
    held("--plugin", setup.plugin())
    with socket.socket(socket.AF_UNIX) as client:
        directory = os.open(setup.directory, os.O_RDONLY)
        client.connect(f"/proc/self/fd/{directory}/lightning-rpc")
        os.close(directory)
        for number, method in enumerate(("notifications", "progress-then-answer")):
            request = {"jsonrpc": "2.0", "id": number, "method": method, "params": [True]}
            client.sendall(json.dumps(request).encode())
        stream = MessageStream()
        seen: list[Message] = []
        while len(seen) < 3:
            stream.feed(client.recv(4096))
            while (message := stream.next()) is not None:
                seen.append(message)
    assert [message.get("id") for message in seen] == [0, None, 1]
    assert seen[1]["params"] == {"id": 1, "level": "info", "message": "half"}


def test_a_command_dies_with_its_plugin(setup: Setup, held: Start) -> None:
    held("--plugin", setup.plugin())
    with pytest.raises(RpcError, match="Plugin terminated before replying") as refused:
        setup.call("quit")
    assert refused.value.code == -4
    with pytest.raises(RpcError, match="Unknown command 'quit'"):
        setup.call("quit")


def test_only_a_dynamic_plugin_can_be_stopped(setup: Setup, held: Start) -> None:
    held("--important-plugin", setup.plugin(), "--plugin-name", "recorder")
    with pytest.raises(RpcError, match="recorder cannot be managed when lightningd is up"):
        setup.call("plugin", ["stop", "recorder"])
    (listed,) = setup.call("plugin", ["list"])["plugins"]
    assert listed == {"name": "recorder", "active": True, "dynamic": False}


def test_a_dynamic_plugin_leaves_the_node_unprotected(setup: Setup, held: Start) -> None:
    held("--important-plugin", setup.plugin(dynamic=""), "--plugin-name", "recorder")
    assert "Successfully" in setup.call("plugin", ["stop", "recorder"])["result"]
    assert setup.call("plugin", ["list"])["plugins"] == []


# Shutdown


def test_stop_answers_when_all_is_done(setup: Setup) -> None:
    node = setup.start(*GENERATE, "--hold", "--plugin", setup.plugin(shutdown=""))
    setup.wait_for_calls(CALLS)
    assert setup.call("stop") == {"result": "Shutdown complete"}
    ended = setup.end(node)
    assert (ended.code, ended.report["exit_reason"]) == (0, "stop")
    notification, others = setup.messages()[-2:]
    assert (notification["method"], notification["params"]) == ("shutdown", {"shutdown": {}})
    assert others == {"others": 0}
    assert not setup.pid_file.exists()


def test_sigterm_stops_cleanly(setup: Setup) -> None:
    node = setup.start(*GENERATE, "--hold", "--plugin", setup.plugin(shutdown=""))
    setup.wait_for_calls(CALLS)
    node.send_signal(signal.SIGTERM)
    assert setup.end(node).report["exit_reason"] == "SIGTERM"
    assert setup.messages()[-2]["method"] == "shutdown"


def test_sigterm_may_end_the_node_as_it_does_lightningd(setup: Setup) -> None:
    node = setup.start(*GENERATE, "--hold", "--plugin", setup.plugin(), "--sigterm", "die")
    setup.wait_for_calls(CALLS)
    node.send_signal(signal.SIGTERM)
    assert setup.end(node).code == -signal.SIGTERM
    assert setup.pid_file.exists()


def test_a_plugin_that_did_not_subscribe_is_left_at_once(setup: Setup) -> None:
    ended = setup.run(*GENERATE, "--plugin", setup.plugin(), "--late-writes", "3")
    assert (ended.code, ended.report["late_calls"]) == (0, 0)
    wait_until_ended(setup.messages()[0]["pid"])
    assert setup.messages()[-1] == {"eof": True, "partial": 0}
    assert ended.report["committed"] == CALLS - 2 - 3


def test_late_writes_and_those_that_no_plugin_sees(setup: Setup, tmp_path: Path) -> None:
    ended = setup.run(
        *(*GENERATE, "--plugin", setup.plugin(shutdown=3)),
        *("--late-writes", "3", "--late-interval", "0.01", "--after-plugin", "2"),
    )
    assert ended.code == 0
    last = [message.get("method", message) for message in setup.messages()[-5:]]
    assert last == ["shutdown", {"others": 1}, "db_write", "db_write", "db_write"]
    assert ended.report["late_calls"] == 3
    assert ended.report["after_plugin_commits"] == 2
    assert ended.report["unprotected_commits"] == 0
    assert ended.report["plugin_exit_s"] > 0.02
    assert setup.versions()[-1] == CALLS - 2 - 2
    assert_at(setup, tmp_path)


def test_a_plugin_that_stays_is_left_in_the_end(setup: Setup) -> None:
    plugin = setup.plugin(shutdown="ignore")
    ended = setup.run(*GENERATE, "--plugin", plugin, "--shutdown-timeout", "0.3")
    assert ended.code == 0
    assert "failed to self-terminate in time, killing." in setup.log()
    assert ended.report["plugin_exit_s"] is None


def test_an_important_plugin_that_died_takes_no_call_with_it(setup: Setup, tmp_path: Path) -> None:
    arguments = ("--crash", "kill-plugin@12", "--after-plugin", "2")
    ended = setup.run(*GENERATE, "--important-plugin", setup.plugin(), *arguments)
    assert ended.code == Exit.PLUGIN
    assert ended.report["after_plugin_commits"] == 2
    assert_at(setup, tmp_path, until=12)
