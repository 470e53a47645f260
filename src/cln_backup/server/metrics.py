"""Figures for Prometheus, on a listener of their own. Needs the extra `metrics`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cln_backup.errors import BadSettings, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

    from cln_backup.backends.socket_url import Address
    from cln_backup.server.listener import Listener
    from cln_backup.server.served import Served


class _Figures:
    """Reads what the backups said at their last write; asking waits for nobody."""

    def __init__(self, nodes: Mapping[str, Served], listener: Listener) -> None:
        self._nodes = nodes
        self._listener = listener

    def collect(self) -> Iterator[Metric]:
        """One sample a node of each figure."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        gauges = {
            name: GaugeMetricFamily(f"cln_backup_{name}", text, labels=["node"])
            for name, text in (
                ("head_version", "Data version of the last change"),
                ("last_change_age_seconds", "Time since the last change was stored"),
                ("size_bytes", "What the backup takes on its storage"),
                ("changes", "Number of changes in the backup"),
                ("node_connections", "Open connections of the node"),
                ("writer_connected", "Whether a writer is connected"),
            )
        }
        counters = {
            name: CounterMetricFamily(f"cln_backup_{name}", text, labels=["node"])
            for name, text in (
                ("stored_changes", "Changes stored since the start"),
                ("received_bytes", "Bytes received since the start, of closed connections"),
                ("compactions", "Compactions finished since the start"),
                ("refusals", "Requests refused since the start"),
            )
        }
        for name, node in self._nodes.items():
            figures = node.counters
            counters["stored_changes"].add_metric([name], figures.changes)
            counters["received_bytes"].add_metric([name], figures.received_bytes)
            counters["compactions"].add_metric([name], figures.compactions)
            counters["refusals"].add_metric([name], figures.refusals)
            gauges["node_connections"].add_metric([name], figures.connections)
            gauges["writer_connected"].add_metric([name], node.writer_peer() is not None)
            last = node.last
            if last is None:
                continue
            gauges["head_version"].add_metric([name], last.version)
            gauges["size_bytes"].add_metric([name], last.size_bytes)
            gauges["changes"].add_metric([name], last.version_count)
            if last.changed_at_ms:
                age_s = max(0.0, time.time() - last.changed_at_ms / 1000)
                gauges["last_change_age_seconds"].add_metric([name], age_s)
        yield from gauges.values()
        yield from counters.values()
        total = GaugeMetricFamily("cln_backup_connections", "Open connections")
        total.add_metric([], self._listener.connections())
        yield total


def serve(address: Address, nodes: Mapping[str, Served], listener: Listener) -> int:
    """Serves the figures at an address, in a thread; returns the port.

    Raises:
        BadSettings: the extra is not installed.
        StorageError: the address cannot be listened at.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        raise BadSettings(
            "For metrics, the extra metrics is needed: pip install 'cln-backup[metrics]'."
        ) from None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(nodes, listener))
    try:
        server, _ = start_http_server(address.port, address.host, registry)
    except OSError as error:
        raise StorageError(f"Cannot listen at {address}: {error.strerror or error}.") from error
    return int(server.server_port)
