"""The messages to the monitor from the plugin or the server that started it."""

from __future__ import annotations

from typing import NamedTuple

from cln_backup.monitor.state import NodeState
from cln_backup.process.channel import Message


class Receivers(NamedTuple):
    """The receivers when something gets worse or better; all from the operator's own settings.

    Attributes:
        apprise: URLs of Apprise, or paths of files with one URL a line.
        webhooks: URLs that get a POST with JSON.
        commands: programs that get JSON on their standard input.
        pings: URLs that get a GET each minute while nothing is bad.
    """

    apprise: tuple[str, ...] = ()
    webhooks: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    pings: tuple[str, ...] = ()


class PageAt(NamedTuple):
    """Where the page is served.

    Attributes:
        host: an address of this machine, or a name of it.
        port: 0 lets the system choose.
        names: under which it may be asked for, besides addresses and the host.
    """

    host: str
    port: int
    names: tuple[str, ...] = ()


class Start(Message):
    """The work of the monitor.

    Attributes:
        title: of this machine and node, or of the server, in each alarm.
        directory: where it keeps what it has told.
        receivers: of alarms.
        nodes: as in `Told`.
        page: `None` if none is wanted.
    """

    title: str
    directory: str
    receivers: Receivers
    nodes: dict[str, NodeState]
    page: PageAt | None = None


class Told(Message):
    """The state of all nodes, by name; a node's plugin has one, with an empty name."""

    nodes: dict[str, NodeState]
