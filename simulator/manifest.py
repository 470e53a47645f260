"""A plugin's manifest: its answer to `getmanifest` (`lightningd/plugin.c`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from simulator.wire import Message

Value: TypeAlias = str | int | bool
OPTION_TYPES = ("string", "string-conceal", "int", "bool", "flag")


class ManifestError(Exception):
    """The manifest is not what lightningd accepts; it kills the plugin then."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of the node that the plugin adds."""

    name: str
    kind: str
    default: Value | None
    multi: bool

    def parse(self, text: str) -> Value:
        """Read a value given on the command line.

        Raises:
            ValueError: it does not fit the type.
        """
        if self.kind == "int":
            return int(text)
        if self.kind in ("bool", "flag"):
            words = {"true": True, "1": True, "false": False, "0": False}
            if text.lower() not in words:
                raise ValueError(f"{text} is neither true nor false")
            return words[text.lower()]
        return text


@dataclass(frozen=True, slots=True)
class Manifest:
    """A plugin's answer to `getmanifest`.

    Attributes:
        disable: why the plugin wants to be left out; `None` when it does not.
    """

    disable: str | None = None
    dynamic: bool = False
    hooks: tuple[str, ...] = ()
    subscriptions: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    options: dict[str, Option] = field(default_factory=dict)

    def subscribed(self, topic: str) -> bool:
        """Whether the plugin wants to hear of something."""
        return topic in self.subscriptions or "*" in self.subscriptions

    def option_values(self, given: Mapping[str, Sequence[str]]) -> dict[str, Value | list[Value]]:
        """Say which options have a value, as `init` tells the plugin.

        Args:
            given: for each option the values from the command line.

        Raises:
            ManifestError: an option is not the plugin's, or a value is none of its type.
        """
        for name in given:
            if name not in self.options:
                raise ManifestError(f"--{name}: unrecognized option")
        values: dict[str, Value | list[Value]] = {}
        for name, option in self.options.items():
            try:
                parsed = [option.parse(text) for text in given.get(name, ())]
            except ValueError as error:
                raise ManifestError(f"--{name}: {error}") from None
            if parsed:
                values[name] = parsed if option.multi else parsed[-1]
            elif option.default is not None:
                values[name] = [option.default] if option.multi else option.default
        return values


def parse_manifest(answer: Message) -> Manifest:
    """Read the answer to `getmanifest`.

    Raises:
        ManifestError: with the words that lightningd logs.
    """
    result = answer.get("result")
    if not isinstance(result, dict):
        raise ManifestError(f"Invalid/missing result tok in '{answer}'")
    if "disable" in result:
        return Manifest(disable=str(result["disable"]))
    dynamic = result.get("dynamic", False)
    if not isinstance(dynamic, bool):
        raise ManifestError(f'getmanifest: invalid "dynamic" field {dynamic}')
    if result.get("nonnumericids", True) is not True:
        raise ManifestError("Plugin does not allow nonnumericids")
    return Manifest(
        dynamic=dynamic,
        topics=tuple(_named(result, "notifications", "method", required=False)),
        options=_options(result),
        methods=tuple(_methods(result)),
        subscriptions=tuple(_strings(result, "subscriptions")),
        hooks=tuple(_named(result, "hooks", "name", required=False)),
    )


def _list(result: Message, key: str, *, required: bool) -> list[Any]:
    if key not in result:
        if required:
            raise ManifestError(f'"result.{key}" was not found in the manifest')
        return []
    value = result[key]
    if not isinstance(value, list):
        raise ManifestError(f'"result.{key}" is not an array')
    return value


def _named(result: Message, key: str, name: str, *, required: bool) -> list[str]:
    """Read an array of objects with a name; hooks may also be plain names."""
    found: list[str] = []
    for position, item in enumerate(_list(result, key, required=required)):
        value = item.get(name) if isinstance(item, dict) else item
        if not isinstance(value, str):
            raise ManifestError(f'"result.{key}[{position}].{name}" missing or not a string.')
        if value in found:
            raise ManifestError(f"Registered for {key} {value} multiple times")
        found.append(value)
    return found


def _strings(result: Message, key: str) -> list[str]:
    found = _list(result, key, required=False)
    for position, item in enumerate(found):
        if not isinstance(item, str):
            raise ManifestError(f"result.{key}[{position}] is not a string: '{item}'")
    return found


def _methods(result: Message) -> list[str]:
    names = _named(result, "rpcmethods", "name", required=True)
    for item in result["rpcmethods"]:
        if not isinstance(item.get("usage"), str):
            raise ManifestError('"usage" not provided by plugin')
    return names


def _options(result: Message) -> dict[str, Option]:
    options: dict[str, Option] = {}
    for item in _list(result, "options", required=True):
        if not isinstance(item, dict) or not {"name", "type", "description"} <= set(item):
            raise ManifestError('An option is missing either "name", "description" or "type"')
        name, kind, default = str(item["name"]), str(item["type"]), item.get("default")
        if kind not in OPTION_TYPES:
            raise ManifestError('Only "string", "int", "bool", and "flag" options are supported')
        if kind == "flag":
            if default not in (None, False, "false"):
                raise ManifestError(f"--{name} type flag default must be 'false' not {default}")
            default = None
        if name in options:
            raise ManifestError(f'Option "{name}" already registered')
        options[name] = Option(name, kind, default, bool(item.get("multi", False)))
    return options
