"""The commands of the node's RPC socket."""

from __future__ import annotations

import hashlib
import shlex
from typing import TYPE_CHECKING, Any

from simulator.nodelog import Level
from simulator.plugin import VERSION, State
from simulator.rpc import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    RPC_FILE,
    Connection,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulator.host import PluginHost
    from simulator.plugin import Plugin
    from simulator.report import Report
    from simulator.settings import Settings
    from simulator.wire import Message

NODE_ID = "02" + hashlib.sha256(b"simulated node").hexdigest()
ALIAS = "SIMULATED"
_VALUE_NAMES = {"int": "value_int", "bool": "value_bool"}


class CommandError(Exception):
    """A command is refused."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Commands:
    """Answers requests, and passes those on that the plugin has registered.

    `stop` is told who waits for the answer to a command `stop`, and the request's id.
    """

    def __init__(
        self,
        settings: Settings,
        host: PluginHost,
        report: Report,
        stop: Callable[[Connection, object], None],
    ) -> None:
        self._settings = settings
        self._host = host
        self._report = report
        self._stop = stop
        self._own = {
            "getinfo": self._getinfo,
            "listconfigs": self._listconfigs,
            "plugin": self._plugin,
            "simulator": self._simulator,
        }

    def take(self, connection: Connection, request: Message) -> None:
        """Answer a request, now or when the plugin has."""
        if "id" not in request:
            connection.error(None, INVALID_REQUEST, "No id")
            return
        request_id, method, params = request["id"], request.get("method"), request.get("params")
        if not isinstance(method, str) or not isinstance(params, (dict, list)):
            missing = "No params" if isinstance(method, str) else "No method"
            connection.error(request_id, INVALID_REQUEST, missing)
            return
        plugin = self._host.plugin
        if plugin is not None and method in plugin.manifest.methods:
            self._pass_on(plugin, connection, request)
        elif method == "stop":
            self._stop(connection, request_id)
        elif method == "notifications":
            connection.notifications = bool(_param(params, 0, "enable"))
            connection.result(request_id, {})
        elif method in self._own:
            try:
                connection.result(request_id, self._own[method](params))
            except CommandError as error:
                connection.error(request_id, error.code, str(error))
        else:
            connection.error(request_id, METHOD_NOT_FOUND, f"Unknown command '{method}'")

    def _pass_on(self, plugin: Plugin, connection: Connection, request: Message) -> None:
        request_id = request["id"]

        def answered(answer: Message) -> None:
            connection.send({**answer, "id": request_id})

        def progressed(notification: Message) -> None:
            if connection.notifications:
                params = {**notification["params"], "id": request_id}
                connection.send({**notification, "params": params})

        prefix = f"{request_id}/"
        plugin.request(
            request["method"], request["params"], answered, prefix=prefix, progress=progressed
        )

    def _getinfo(self, _params: object) -> object:
        settings = self._settings
        return {
            "id": NODE_ID,
            "alias": ALIAS,
            "color": NODE_ID[:6],
            "num_peers": 0,
            "num_pending_channels": 0,
            "num_active_channels": 0,
            "num_inactive_channels": 0,
            "address": [],
            "binding": [],
            "version": VERSION,
            "blockheight": 0,
            "network": settings.network,
            "fees_collected_msat": 0,
            "lightning-dir": settings.directory,
            "our_features": dict.fromkeys(("init", "node", "channel", "invoice"), ""),
        }

    def _listconfigs(self, params: object) -> object:
        configs = self._configs()
        wanted = _param(params, 0, "config")
        if wanted is None:
            return {"configs": configs}
        if wanted not in configs:
            raise CommandError(
                INVALID_PARAMS, f"config: Unknown config option: invalid token '\"{wanted}\"'"
            )
        return {"configs": {wanted: configs[wanted]}}

    def _configs(self) -> dict[str, object]:
        settings, plugin = self._settings, self._host.plugin
        configs: dict[str, object] = {}
        for name in ("plugin", "important-plugin"):
            given = settings.plugin
            paths = []
            if given is not None and given.important == (name == "important-plugin"):
                paths = [shlex.join(given.command)]
            configs[name] = {"values_str": paths, "sources": ["cmdline"] * len(paths)}
        for name, text in {
            "lightning-dir": settings.directory,
            "network": settings.network,
            "wallet": f"sqlite3://{settings.wallet}",
            "pid-file": settings.pid_file or "",
            "rpc-file": RPC_FILE,
        }.items():
            configs[name] = {"value_str": text, "source": "cmdline"}
        if plugin is None or settings.plugin is None:
            return configs
        for name, value in plugin.manifest.option_values(settings.plugin.options).items():
            option = plugin.manifest.options[name]
            entry: dict[str, Any]
            if option.kind == "flag":
                entry = {"set": value}
            elif option.multi:
                field = _VALUE_NAMES.get(option.kind, "value_str").replace("value", "values")
                entry = {field: value}
            else:
                concealed = "..." if option.kind == "string-conceal" else value
                entry = {_VALUE_NAMES.get(option.kind, "value_str"): concealed}
            entry["source"] = "cmdline" if name in settings.plugin.options else "default"
            configs[name] = {**entry, "plugin": shlex.join(settings.plugin.command)}
        return configs

    def _plugin(self, params: object) -> object:
        """Stop a dynamic plugin, or list what there is (`lightningd/plugin_control.c`)."""
        plugin, command = self._host.plugin, _param(params, 0, "subcommand")
        if command == "list":
            listed = [] if plugin is None else [plugin]
            return {
                "command": "list",
                "plugins": [
                    {
                        "name": each.name,
                        "active": each.state is State.INIT_COMPLETE,
                        "dynamic": each.manifest.dynamic,
                    }
                    for each in listed
                ],
            }
        if command != "stop":
            raise CommandError(INVALID_PARAMS, f"unknown subcommand {command}")
        name = _param(params, 1, "plugin")
        if plugin is None or name != plugin.name:
            raise CommandError(INVALID_PARAMS, f"Could not find plugin {name}")
        if not plugin.manifest.dynamic:
            raise CommandError(INVALID_PARAMS, f"{name} cannot be managed when lightningd is up")
        self._host.important = False
        self._host.lose(Level.INFO, "stopped by lightningd via RPC")
        return {"command": "stop", "result": f"Successfully stopped {name}."}

    def _simulator(self, _params: object) -> object:
        """Say how far the replay is; a command of the simulator's own."""
        report = self._report
        return {
            "data_version": report.data_version,
            "next_call": report.next_call,
            "committed": report.committed,
            "unprotected_commits": report.unprotected_commits,
        }


def _param(params: object, position: int, name: str) -> Any:  # noqa: ANN401 - any JSON value
    """Take a parameter, given by name or by position."""
    if isinstance(params, dict):
        return params.get(name)
    return params[position] if isinstance(params, list) and len(params) > position else None
