"""The node: whether it runs, and how it has loaded the plugin."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cln_backup.model.errors import NodeRunning
from cln_backup.model.health import Finding, Level
from cln_backup.node.outside import RPC_SOCKET_NAME, options_in_configuration, require_stopped
from cln_backup.node.rpc import UNKNOWN_COMMAND, Refused, ask, is_important

if TYPE_CHECKING:
    from collections.abc import Iterator


_ANSWER_S: Final = 10.0
_PLUGIN_OPTIONS: Final = ("important-plugin", "plugin")
_OWN_OPTION: Final = "backup-destination"
"""One that the plugin registers with a default, so that `listconfigs` names the plugin."""

_OTHERS: Final = frozenset(("backup.py", "backup"))
"""Names of the community's plugin, which uses the same hook."""


class Node(NamedTuple):
    """A node, as its RPC and its configuration files tell it.

    Attributes:
        runs: whether lightningd runs.
        silent: why its RPC cannot be asked although it runs.
        info: its answer to `getinfo`.
        status: its answer to `backup-status`; `None` if there is none.
        failed: why `backup-status` failed, if the plugin is loaded.
        plugins: the names of its plugins.
        important: whether the plugin was loaded as important.
        wallet: its option `wallet`, if it names a database that is not SQLite.
        configured: the lines of its configuration files that load a backup plugin.
    """

    runs: bool = False
    silent: str | None = None
    info: dict[str, Any] = {}  # noqa: RUF012 - never changed
    status: dict[str, Any] | None = None
    failed: str | None = None
    plugins: tuple[str, ...] = ()
    important: bool | None = None
    wallet: str | None = None
    configured: tuple[tuple[str, str], ...] = ()


def gather(directory: str, database: str | None, program: str) -> Node:
    """Asks the node, if it runs; `program` is the path of the installed plugin.

    Raises:
        OSError: this user may not use the node's RPC socket.
    """
    configured = tuple(
        (file, f"{option}={value}")
        for option in _PLUGIN_OPTIONS
        for file, value in options_in_configuration(directory, option)
        if is_backup_plugin(value)
    )
    wallet = next(
        (value for _, value in options_in_configuration(directory, "wallet") if _is_other(value)),
        None,
    )
    node = Node(configured=configured, wallet=wallet)
    rpc = os.path.join(directory, RPC_SOCKET_NAME)
    try:
        info = _object(ask(rpc, "getinfo", timeout_s=_ANSWER_S))
        node = node._replace(runs=True, info=info)
        return _asked(node, rpc, program)
    except (FileNotFoundError, NotADirectoryError, ConnectionError):
        try:
            require_stopped(directory, database)
        except NodeRunning as error:
            return node._replace(runs=True, silent=str(error).partition(".")[0])
        return node._replace(runs=False)
    except (TimeoutError, Refused) as error:
        return node._replace(runs=True, silent=str(error))


def _asked(node: Node, rpc: str, program: str) -> Node:
    listed = _object(ask(rpc, "plugin", {"subcommand": "list"}, timeout_s=_ANSWER_S))
    names = listed.get("plugins")
    plugins = tuple(
        str(_object(each).get("name")) for each in (names if isinstance(names, list) else ())
    )
    configs = ask(rpc, "listconfigs", timeout_s=_ANSWER_S)
    important = is_important({"result": configs}, program, _OWN_OPTION)
    wallet = str(_object(_object(_object(configs).get("configs")).get("wallet")).get("value_str"))
    node = node._replace(plugins=plugins, important=important)
    if _is_other(wallet):
        node = node._replace(wallet=wallet)
    try:
        return node._replace(status=_object(ask(rpc, "backup-status", timeout_s=_ANSWER_S)))
    except Refused as error:
        loaded = error.code != UNKNOWN_COMMAND
        return node._replace(failed=str(error) if loaded else None)


def _object(value: object) -> dict[str, Any]:
    """A JSON object; an empty one if the answer is of another kind."""
    return value if isinstance(value, dict) else {}


def is_backup_plugin(path: str) -> bool:
    """Whether a plugin is this one, or the community's, by its name."""
    return _is_ours(path) or _is_others(path)


def _is_ours(path: str) -> bool:
    return "cln-backup" in os.path.basename(path)


def _is_others(path: str) -> bool:
    return os.path.basename(path) in _OTHERS


def _is_other(wallet: str) -> bool:
    scheme, slashes, _ = wallet.partition("://")
    return bool(slashes) and scheme != "sqlite3"


def judge(node: Node) -> Iterator[Finding]:
    """The findings about a node."""
    if node.silent is not None:
        yield Finding(
            "no-answer",
            Level.BAD,
            f"The node runs, but cannot be asked: {node.silent}.",
            "If it has just started, run the doctor again. If lightning-cli does not answer "
            "either, it may be waiting for its backup: look at the backup's disk, server or "
            "network, and at lightningd's log. Nothing is lost.",
        )
    elif not node.runs:
        yield Finding(
            "node-stopped",
            Level.WARNING,
            "The node does not run: its files were read instead.",
            "Start it, and run the doctor again, to see whether it is protected.",
        )
    yield from _of_loading(node) if node.runs and node.silent is None else _of_files(node)
    if node.wallet is not None:
        yield Finding(
            "postgres-wallet",
            Level.BAD,
            f"The node's database is not SQLite (wallet={node.wallet.partition('://')[0]}://…): "
            "lightningd reports none of its changes, so they are not backed up.",
            "Use a SQLite wallet, or replicate the database with its own means "
            "(synchronous_commit, synchronous_standby_names).",
        )


def _of_loading(node: Node) -> Iterator[Finding]:
    ours = [name for name in node.plugins if _is_ours(name)]
    others = [name for name in node.plugins if _is_others(name)]
    if node.failed is not None:
        yield Finding(
            "not-protected",
            Level.BAD,
            f"backup-status failed: {node.failed}",
            "Read the lines of cln-backup in lightningd's log. The next write halts the node "
            "before anything is lost; then start it again.",
        )
    elif node.status is None:
        yield Finding(
            "not-loaded",
            Level.BAD,
            "The node runs without the plugin: its changes are NOT backed up.",
            "Put important-plugin=PATH/cln-backup into lightningd's configuration and start the "
            "node again. It then takes a fresh snapshot.",
        )
    elif node.important is False:
        yield Finding(
            "not-important",
            Level.WARNING,
            "The plugin is not loaded as important: if all its processes are killed at once, the "
            "node continues without a backup.",
            "Write important-plugin= instead of plugin= into lightningd's configuration, and start "
            "the node again.",
        )
    else:
        yield Finding("not-loaded", Level.GOOD, "The plugin is loaded, as important.")
    if len(ours) > 1 or len(node.configured) > 1:
        yield _twice(node, ours)
    if others:
        yield Finding(
            "other-plugin",
            Level.WARNING,
            f"Another backup plugin is loaded: {', '.join(others)}. The node waits for both at "
            "each change, and both may write to one file.",
            "Remove its line from lightningd's configuration, with backup-destination, and start "
            "the node again.",
        )
    else:
        yield Finding(
            "other-plugin",
            Level.GOOD,
            "No other plugin is known as a backup by its name. lightningd does not tell which "
            "plugins use db_write.",
        )


def _of_files(node: Node) -> Iterator[Finding]:
    lines = [line for _, line in node.configured]
    ours = [line for line in lines if _is_ours(line)]
    if len(lines) > 1:
        yield _twice(node, [])
    elif not ours:
        yield Finding(
            "not-loaded",
            Level.WARNING,
            "No line of the configuration files loads the plugin. Another file, a plugin directory "
            "or the command line may.",
            "Put important-plugin=PATH/cln-backup into lightningd's configuration before you start "
            "the node.",
        )
    elif not ours[0].startswith("important-"):
        yield Finding(
            "not-important",
            Level.WARNING,
            f"The configuration has {ours[0]}: if all processes of the plugin are killed at once, "
            "the node continues without a backup.",
            "Write important-plugin= instead of plugin=.",
        )
    else:
        yield Finding(
            "not-loaded", Level.GOOD, f"The configuration loads the plugin as important: {ours[0]}"
        )


def _twice(node: Node, plugins: list[str]) -> Finding:
    named = plugins or [line for _, line in node.configured]
    return Finding(
        "loaded-twice",
        Level.BAD,
        f"Backup plugins are loaded more than once: {', '.join(named)}. The node halts.",
        "Leave one line in lightningd's configuration, important-plugin=PATH/cln-backup.",
    )
