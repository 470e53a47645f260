"""The command line."""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import dataclass

from simulator import crash
from simulator.calls import has_events
from simulator.load import START_CALLS, Load
from simulator.settings import (
    Exit,
    PluginSettings,
    Settings,
    ShutdownSettings,
    default_pid_file,
)
from simulator.source import RIDERS

EXAMPLES = """\
examples:
  the database that a recorded node had in the end
    python -m simulator /tmp/regtest --capture payer.jsonl.xz
  a node with a plugin, from a recording, and what the answers took
    python -m simulator /tmp/regtest --capture payer.jsonl.xz \\
        --important-plugin /path/to/cln-backup --report report.json
  a node that stays, to look at from another terminal
    python -m simulator /tmp/regtest --generate 1000 --rate 20 --hold --plugin /path/to/cln-backup
    python -m simulator.client /tmp/regtest getinfo
    python -m simulator.client /tmp/regtest stop
  a crash after the plugin has answered call 20, and the next start, with other statements
    python -m simulator /tmp/regtest --generate 100 --plugin P --crash after-answer@20
    python -m simulator /tmp/regtest --generate 100 --plugin P --variant
  a recording in which the node was killed three times, process by process
    python -m simulator /tmp/regtest --capture kill9-three-times.jsonl.xz --plugin P
  a database of 300 MiB
    python -m simulator /tmp/regtest --generate 0 --database-mb 300
"""

EXIT_CODES = "exit codes:\n" + "\n".join(
    f"  {int(code):3}  {text}"
    for code, text in {
        Exit.DONE: "all calls made, or stopped",
        Exit.PLUGIN: "an important plugin ended, or a plugin could not be started",
        Exit.USAGE: "the command line is wrong",
        Exit.PID_FILE: "another node holds the pid file",
        Exit.REFUSED: "the plugin refused a call: nothing was committed",
        Exit.PLUGIN_IN_HOOK: "the plugin ended while the node waited for its answer",
        Exit.DATABASE: "the database refused a call",
        Exit.SOURCE: "the calls do not continue from the database's version",
        Exit.NOT_REACHED: "a commit ended without passing its crash point",
    }.items()
)


@dataclass(frozen=True, slots=True)
class Command:
    """The options of the command line.

    Attributes:
        settings: those of the node; a supervisor changes some for each process.
        supervise: start one process after the other.
        recorded: those that the recording says there were.
    """

    settings: Settings
    supervise: bool
    recorded: bool


def parse(arguments: list[str] | None = None) -> Command:
    """Read the command line; exits with 2 when it is wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return _command(options)
    except (OSError, ValueError) as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulator",
        description="A simulated Core Lightning node that drives a plugin with the db_write hook.",
        epilog=f"{crash.HELP}\n{EXIT_CODES}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("directory", metavar="DIR", help="the network directory; made if missing")
    _add_source(parser.add_argument_group("calls"))
    _add_plugin(parser.add_argument_group("plugin"))
    _add_node(parser.add_argument_group("node"))
    _add_end(parser.add_argument_group("shutdown"))
    _add_crash(parser.add_argument_group("crashes"))
    return parser


def _add_source(group: argparse._ArgumentGroup) -> None:
    source = group.add_mutually_exclusive_group()
    source.add_argument("--capture", metavar="FILE", help="replay a recording, .jsonl or .jsonl.xz")
    source.add_argument(
        "--generate",
        metavar="COUNT",
        type=int,
        help=f"generate {START_CALLS} calls that make a schema, then COUNT transactions",
    )
    group.add_argument(
        "--blob-bytes",
        metavar="N",
        type=int,
        default=1000,
        help="mean size of the large value in a generated transaction (%(default)s)",
    )
    group.add_argument(
        "--invalid-utf8", action="store_true", help="generate texts with invalid UTF-8"
    )
    group.add_argument(
        "--database-mb",
        metavar="N",
        type=int,
        default=0,
        help="first grow the database to this many MiB, 16 a transaction",
    )
    group.add_argument("--before", metavar="FILE", help="begin with this database (.xz or not)")
    group.add_argument(
        "--first",
        metavar="CALL",
        type=int,
        help="begin at this call, whatever the database's version",
    )
    group.add_argument("--calls", metavar="N", type=int, help="make no more than N calls")
    group.add_argument("--until", metavar="VERSION", type=int, help="the last version to be made")
    group.add_argument(
        "--riders",
        choices=RIDERS,
        default="needed",
        help="which PRAGMA calls before its first transaction a process repeats:"
        " those that change something, all, or none (%(default)s)",
    )
    group.add_argument(
        "--variant",
        metavar="TAG",
        nargs="?",
        const="again",
        help="add a row to the first transaction of this process (under supervision: of each"
        " process but the first), as a node sends other statements after a crash",
    )
    group.add_argument("--rate", metavar="N", type=float, default=0.0, help="calls a second")


def _add_plugin(group: argparse._ArgumentGroup) -> None:
    plugin = group.add_mutually_exclusive_group()
    plugin.add_argument("--plugin", metavar="COMMAND", help="the plugin, with arguments if need be")
    plugin.add_argument(
        "--important-plugin", metavar="COMMAND", help="the same, and the node ends with it"
    )
    group.add_argument("--plugin-name", metavar="NAME", help="in the log (the program's name)")
    group.add_argument(
        "--option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="set an option that the plugin adds to the node, such as backup-destination",
    )
    group.add_argument(
        "--before-init",
        metavar="N",
        type=int,
        default=10,
        help="calls of a process before init (%(default)s)",
    )
    group.add_argument(
        "--during-init", metavar="N", type=int, default=0, help="calls between init and its answer"
    )
    group.add_argument(
        "--start-timeout",
        metavar="S",
        type=float,
        default=120.0,
        help="seconds for each of getmanifest and init (%(default)s)",
    )
    group.add_argument(
        "--manifest-only",
        action="store_true",
        help="start the plugin, ask for its manifest and leave, as lightningd --help does",
    )


def _add_node(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--wallet",
        metavar="PATH",
        help="the database (DIR/lightningd.sqlite3), perhaps with sqlite3://",
    )
    group.add_argument(
        "--journal-mode", choices=("delete", "wal"), default="delete", help="(%(default)s)"
    )
    group.add_argument(
        "--synchronous", choices=("full", "normal", "off"), default="full", help="(%(default)s)"
    )
    group.add_argument(
        "--pid-file",
        metavar="PATH",
        help="default: lightningd-NETWORK.pid beside DIR; none for none",
    )
    group.add_argument("--log-file", metavar="PATH", help="(DIR/lightningd.log); none for none")
    group.add_argument(
        "--quiet", action="store_true", help="print only unusual log lines to stderr"
    )
    group.add_argument("--hold", action="store_true", help="stay when all calls are made")
    group.add_argument("--report", metavar="FILE", help="write counts and times as JSON")


def _add_end(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--shutdown-timeout",
        metavar="S",
        type=float,
        default=30.0,
        help="seconds for a plugin that subscribed to shutdown (%(default)s)",
    )
    group.add_argument(
        "--late-writes",
        metavar="N",
        type=int,
        default=0,
        help="how many of the calls are kept for the time after the shutdown notification;"
        " another child of the node, as another plugin, lives until they are made",
    )
    group.add_argument(
        "--late-interval",
        metavar="S",
        type=float,
        default=0.1,
        help="seconds between them (%(default)s)",
    )
    group.add_argument(
        "--storm",
        metavar="SEED",
        type=int,
        help="after the shutdown notification, make calls at random moments until the plugin's"
        " pipe ends; another child of the node lives for a part of that time",
    )
    group.add_argument(
        "--after-plugin",
        metavar="N",
        type=int,
        default=0,
        help="how many of the last calls are kept for when the plugin has gone",
    )
    group.add_argument(
        "--sigterm",
        choices=("stop", "die"),
        default="stop",
        help="shut down cleanly, or end at once as lightningd does (%(default)s)",
    )


def _add_crash(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--crash", metavar="POINT@CALL", action="append", default=[], help="see below"
    )
    group.add_argument(
        "--supervise",
        action="store_true",
        help="start the next process after each crash; a recording with events does so anyway",
    )
    group.add_argument(
        "--one-process",
        action="store_true",
        help="replay such a recording in one process, without the calls that were rolled back",
    )


def _command(options: argparse.Namespace) -> Command:
    directory = os.path.abspath(options.directory)
    points = [crash.parse_point(text) for text in options.crash]
    events = options.capture is not None and has_events(options.capture)
    recorded = events and not options.one_process
    supervise = options.supervise or recorded
    if recorded and points:
        raise ValueError("a recording with events has its own crashes; try --one-process")
    if not supervise and sum(point.kills_node for point in points) > 1:
        raise ValueError("one process crashes once; more than that needs --supervise")
    network = os.path.basename(directory)
    settings = Settings(
        directory=directory,
        network=network,
        wallet=_wallet(options.wallet, directory),
        pid_file=_path_or_none(options.pid_file, default_pid_file(directory, network)),
        log_file=_path_or_none(options.log_file, os.path.join(directory, "lightningd.log")),
        quiet=options.quiet,
        plugin=_plugin(options),
        shutdown=ShutdownSettings(
            timeout_s=options.shutdown_timeout,
            late_calls=options.late_writes,
            late_interval_s=options.late_interval,
            storm=options.storm,
            after_plugin=options.after_plugin,
            on_sigterm=options.sigterm == "stop",
        ),
        recording=_absolute(options.capture),
        load=_load(options),
        before=_absolute(options.before),
        first=options.first,
        count=options.calls,
        until=options.until,
        riders=options.riders,
        variant=options.variant,
        wal=options.journal_mode == "wal",
        synchronous=options.synchronous,
        rate=options.rate,
        hold=options.hold,
        manifest_only=options.manifest_only,
        crash_points=tuple(sorted(points, key=lambda point: point.at)),
        report=_absolute(options.report),
    )
    return Command(settings, supervise, recorded)


def _load(options: argparse.Namespace) -> Load | None:
    if options.generate is None:
        return None
    return Load(
        options.generate,
        blob_bytes=options.blob_bytes,
        stray_bytes=options.invalid_utf8,
        database_mb=options.database_mb,
    )


def _plugin(options: argparse.Namespace) -> PluginSettings | None:
    text = options.important_plugin or options.plugin
    if text is None:
        return None
    # The plugin is started in the network directory: paths are meant from here. A path alone is
    # taken as it is, with its spaces, as lightningd takes it.
    words = [text] if os.path.exists(text) else shlex.split(text)
    command = tuple(os.path.abspath(word) if os.path.exists(word) else word for word in words)
    values: dict[str, list[str]] = {}
    for option in options.option:
        name, equals, value = option.partition("=")
        values.setdefault(name, []).append(value if equals else "true")
    last_word = next((word for word in reversed(command) if not word.startswith("-")), text)
    return PluginSettings(
        command=command,
        name=options.plugin_name or os.path.basename(last_word),
        important=options.important_plugin is not None,
        options=values,
        before_init=options.before_init,
        during_init=options.during_init,
        timeout_s=options.start_timeout,
    )


def _wallet(given: str | None, directory: str) -> str:
    if given is None:
        return os.path.join(directory, "lightningd.sqlite3")
    return os.path.abspath(given.removeprefix("sqlite3://"))


def _path_or_none(given: str | None, default: str) -> str | None:
    if given == "none":
        return None
    return default if given is None else os.path.abspath(given)


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(path)
