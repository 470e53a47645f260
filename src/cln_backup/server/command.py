"""`backup-cli server`: the server as a process."""

from __future__ import annotations

import logging
import resource
import signal
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends import redacted, url_of
from cln_backup.compaction.policy import Limits
from cln_backup.model.errors import BackupError, BadSettings, BadUrl, NotFound
from cln_backup.monitor.messages import PageAt, Receivers
from cln_backup.server import certificate, listener, logs, systemd
from cln_backup.server.admission import MAX_CONNECTIONS
from cln_backup.server.following import OFF, Following
from cln_backup.server.monitoring import Monitoring
from cln_backup.server.nodes import node_of, open_nodes, read_nodes, renew, say_not_found
from cln_backup.server.sealed import Sealed
from cln_backup.server.self_compaction import SelfCompaction
from cln_backup.wire.address import Address, BadAddress, parse_address
from cln_backup.wire.listening import bind

if TYPE_CHECKING:
    import socket
    import ssl
    from types import FrameType

    from cln_backup.server.node import Node

_log = logging.getLogger("cln_backup.server")

AUTO = "auto"

_LEAVE_S = 30
"""The maximum time for a stop; after it, the system ends the process."""


class Options(NamedTuple):
    """The options of the command line; paths and addresses as text."""

    nodes_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_dir: str | None = None
    insecure: bool = False
    metrics: str | None = None
    page: str | None = None
    page_names: tuple[str, ...] = ()
    replica_dir: str | None = None
    compact: str = AUTO
    compact_ratio: float = Limits().ratio
    compact_max_changes: int = Limits().max_changes
    compact_max_days: float = Limits().max_days
    max_connections: int = MAX_CONNECTIONS
    alarm_apprise: tuple[str, ...] = ()
    alarm_webhook: tuple[str, ...] = ()
    alarm_command: tuple[str, ...] = ()
    alarm_ping: tuple[str, ...] = ()
    state_dir: str | None = None
    log_mode: str = "plain"
    log_level: str = "info"


def serve(url: str | None, address: str | None, options: Options) -> None:
    """Serves until SIGTERM or SIGINT; then finishes the requests in progress, and returns.

    Raises:
        BadUrl: an address is not valid.
        BadSettings: the options are not safe, or not complete.
        BackupError: a backup cannot be opened, or the server cannot listen on an address.
    """
    logs.set_up(options.log_mode, options.log_level)
    place = None if address is None else _address(address)
    figures_at = None if options.metrics is None else _address(options.metrics)
    page_at = None if options.page is None else PageAt(*_address(options.page), options.page_names)
    nodes = _nodes(url, options)
    paths = _certificate(options)
    tls = None if paths is None else certificate.load(*paths)
    sockets = _sockets(place)
    _refuse_unsafe(sockets, nodes, tls, options)
    _raise_file_limit()
    if options.nodes_file is None:
        _open(nodes[""])
    else:
        open_nodes(nodes.values())

    def renew_all() -> None:
        if options.nodes_file is not None:
            renew(nodes, options.nodes_file)
        if tls is not None and paths is not None:
            _renew_certificate(tls, paths)

    server = listener.Listener(
        nodes, sockets, tls, max_connections=options.max_connections, on_hup=renew_all
    )
    server.stop_on_signals()
    signal.signal(signal.SIGHUP, lambda _signal, _frame: None)  # see Listener.run
    for order in (signal.SIGTERM, signal.SIGINT):
        signal.signal(order, _leave_soon)
    if figures_at is not None:
        from cln_backup.server import metrics

        port = metrics.serve(figures_at, nodes, server)
        _log.info("Metrics at http://%s/metrics", Address(figures_at.host, port))
    for node in nodes.values():
        name = f" for the node {node.name}" if node.name else ""
        _log.info("Serving %s%s, %s", redacted(node.url), name, _state_of(node))
    for sock in sockets:
        # The phrase of the community's server, for which scripts wait.
        _log.info("Waiting for connection on %s", Address(*sock.getsockname()[:2]))
    beside = _beside(nodes, options, page_at)
    systemd.notify("READY=1")
    for part in beside:
        part.start()
    try:
        server.run()
    finally:
        for part in beside:
            part.stop()
    systemd.notify("STOPPING=1")
    _log.info("Stopped")


def _state_of(node: Node) -> str:
    if isinstance(node, Sealed):
        return f"sealed, with {node.objects} objects"
    return f"at version {node.last.version if node.last is not None else 0}"


def _beside(
    nodes: dict[str, Node], options: Options, page: PageAt | None
) -> list[Following | SelfCompaction | Monitoring]:
    """The parts of the server that work beside its connections."""
    found: list[Following | SelfCompaction | Monitoring] = []
    receivers = Receivers(
        *(options.alarm_apprise, options.alarm_webhook),
        *(options.alarm_command, options.alarm_ping),
    )
    if any(receivers) or page is not None:
        found.append(Monitoring(nodes, receivers, options.state_dir, page))
    if options.replica_dir != OFF:
        found.append(Following(nodes, options.replica_dir))
    if options.compact == AUTO:
        limits = Limits(
            options.compact_ratio, options.compact_max_changes, options.compact_max_days
        )
        found.append(SelfCompaction(nodes, limits))
    return found


def _address(text: str) -> Address:
    """The address to listen on; port 0 lets the system choose one."""
    try:
        return parse_address(text, "the address", lowest_port=0)
    except BadAddress as error:
        raise BadUrl(f"{text!r} cannot be understood: {error}. The form is HOST:PORT") from None


def _leave_soon(_signal: int, _frame: FrameType | None) -> None:
    # Whatever blocks the stop then: acknowledged changes are on stable storage.
    signal.alarm(_LEAVE_S)


def _open(node: Node) -> None:
    try:
        node.open()
    except NotFound:
        say_not_found(node)


def _nodes(url: str | None, options: Options) -> dict[str, Node]:
    if (url is None) == (options.nodes_file is None):
        raise BadSettings("Give either the URL of one backup, or a list of nodes with --nodes.")
    if options.nodes_file is not None:
        return read_nodes(options.nodes_file)
    assert url is not None
    return {"": node_of("", url_of(url), None)}


def _certificate(options: Options) -> tuple[str, str] | None:
    given = (options.tls_cert, options.tls_key)
    if given != (None, None) and (None in given or options.tls_dir is not None):
        raise BadSettings("Give either --tls-cert and --tls-key, or --tls-dir alone.")
    if given == (None, None) and options.tls_dir is None:
        return None
    if options.tls_dir is not None:
        paths = certificate.make(options.tls_dir)
    else:
        assert options.tls_cert is not None
        assert options.tls_key is not None
        paths = (options.tls_cert, options.tls_key)
    shown = certificate.fingerprint(paths[0])
    _log.info("Certificate %s; clients pin it with fingerprint=%s", paths[0], shown)
    return paths


def _renew_certificate(tls: ssl.SSLContext, paths: tuple[str, str]) -> None:
    try:
        certificate.load(*paths)  # a pair that does not match must not replace the one in use
        certificate.use(tls, *paths)
        _log.info(
            "Certificate %s; its fingerprint is %s", paths[0], certificate.fingerprint(paths[0])
        )
    except BackupError as error:
        _log.error("Cannot load the new certificate; the old one stays in use: %s", error)


def _sockets(place: Address | None) -> list[socket.socket]:
    passed = systemd.passed_sockets()
    if passed and place is not None:
        raise BadSettings("systemd has already opened the sockets; leave out HOST:PORT.")
    if passed:
        return passed
    if place is None:
        raise BadSettings("Give an address to listen on: HOST:PORT, such as 127.0.0.1:8700.")
    return bind(place)


def _refuse_unsafe(
    sockets: list[socket.socket],
    nodes: dict[str, Node],
    tls: ssl.SSLContext | None,
    options: Options,
) -> None:
    if options.insecure or all(map(listener.is_private, sockets)):
        return
    if tls is None:
        raise BadSettings(
            "Refusing to listen without TLS on an address that other machines can reach: anyone "
            "on the network path could read and change the backup. Give --tls-dir (or --tls-cert "
            "and --tls-key); or listen on 127.0.0.1 and connect nodes by SSH, WireGuard or Tor; "
            "or give --insecure."
        )
    if any(node.token_hash is None for node in nodes.values()):
        raise BadSettings(
            "Refusing to listen without tokens on an address that other machines can reach: anyone "
            "could read and write the backup. Make a list of nodes with their tokens (--nodes, "
            "`backup-cli token`); or give --insecure."
        )


def _raise_file_limit() -> None:
    """Raises the limit of open files, usually 1024: each node has several open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1 << 16 if hard == resource.RLIM_INFINITY else hard
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
