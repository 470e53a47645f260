"""Metrics for Prometheus, on a listener of their own. Needs the extra `metrics`."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from cln_backup.model.errors import BadSettings
from cln_backup.monitor.http import REQUEST_S, HttpServer
from cln_backup.server.sealed import Sealed
from cln_backup.server.served import Served

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

    from cln_backup.server.listener import Listener
    from cln_backup.server.node import Node
    from cln_backup.wire.address import Address


class _Figures:
    """Collects the state of the backups as of their last write, without waiting."""

    def __init__(self, nodes: Mapping[str, Node], listener: Listener) -> None:
        self._nodes = nodes
        self._listener = listener

    def collect(self) -> Iterator[Metric]:
        """One sample of each metric per node."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        gauges = {
            name: GaugeMetricFamily(f"cln_backup_{name}", text, labels=["node"])
            for name, text in (
                ("head_version", "Data version of the last change"),
                ("last_change_age_seconds", "Time since the last change was stored"),
                ("size_bytes", "Size of the backup on its storage"),
                ("changes", "Number of changes in the backup"),
                ("node_connections", "Open connections of the node"),
                ("writer_connected", "Whether a writer is connected"),
                ("proven_version", "Data version up to which the backup was replayed"),
                ("proven_timestamp_seconds", "When that was found, since 1970"),
                ("proof_lag_seconds", "For how long a change has not been replayed yet"),
                ("integrity_timestamp_seconds", "When the replica was last checked, since 1970"),
                ("space_bound_bytes", "Most that the backup uses if its compactions succeed"),
                ("quota_bytes", "Most that a sealed backup may use"),
                ("objects", "Number of objects of a sealed backup"),
                ("last_object_timestamp_seconds", "When its last one was stored, since 1970"),
                ("alarm", "Whether the backup does not replay, or is damaged"),
            )
        }
        counters = {
            name: CounterMetricFamily(f"cln_backup_{name}", text, labels=["node"])
            for name, text in (
                ("stored_changes", "Changes stored since the start"),
                ("received_bytes", "Bytes received since the start, of closed connections"),
                ("compactions", "Compactions finished since the start"),
                ("self_compactions", "Of those, compactions by itself"),
                ("refusals", "Requests refused since the start"),
            )
        }
        for name, node in dict(self._nodes).items():  # the list may be reloaded meanwhile
            figures = node.counters
            counters["stored_changes"].add_metric([name], figures.changes)
            counters["received_bytes"].add_metric([name], figures.received_bytes)
            counters["compactions"].add_metric([name], figures.compactions)
            counters["self_compactions"].add_metric([name], figures.self_compactions)
            counters["refusals"].add_metric([name], figures.refusals)
            gauges["node_connections"].add_metric([name], node.connections())
            gauges["writer_connected"].add_metric([name], node.writer_peer() is not None)
            if isinstance(node, Sealed):
                gauges["size_bytes"].add_metric([name], node.size_bytes())
                gauges["objects"].add_metric([name], node.objects)
                if node.quota_bytes:
                    gauges["quota_bytes"].add_metric([name], node.quota_bytes)
                if node.last_stored_at is not None:
                    gauges["last_object_timestamp_seconds"].add_metric([name], node.last_stored_at)
            if not isinstance(node, Served):
                continue
            proof, progress = node.proof, node.proof.progress
            if progress is not None:
                gauges["proven_version"].add_metric([name], progress.proven_version)
                gauges["proof_lag_seconds"].add_metric([name], proof.lag_s())
                for gauge, at in (
                    ("proven_timestamp_seconds", progress.proven_at),
                    ("integrity_timestamp_seconds", progress.checked_at),
                ):
                    if at is not None:
                        gauges[gauge].add_metric([name], at)
            gauges["alarm"].add_metric([name], proof.alarm is not None)
            if node.space_bound_bytes is not None:
                gauges["space_bound_bytes"].add_metric([name], node.space_bound_bytes)
            last = node.last
            if last is None:
                continue
            gauges["head_version"].add_metric([name], last.version)
            gauges["size_bytes"].add_metric([name], node.size_bytes())
            gauges["changes"].add_metric([name], last.version_count)
            if last.changed_at_ms:
                age_s = max(0.0, time.time() - last.changed_at_ms / 1000)
                gauges["last_change_age_seconds"].add_metric([name], age_s)
        yield from gauges.values()
        yield from counters.values()
        total = GaugeMetricFamily("cln_backup_connections", "Open connections")
        total.add_metric([], self._listener.connections())
        yield total


def serve(address: Address, nodes: Mapping[str, Node], listener: Listener) -> int:
    """Serves the metrics at an address, in a thread; returns the port.

    Raises:
        BadSettings: the package is not installed.
        StorageError: the server cannot listen on the address.
    """
    try:
        from prometheus_client import CollectorRegistry, MetricsHandler
    except ImportError:
        raise BadSettings(
            "The Python package prometheus-client is not installed; --metrics needs it. Install it "
            "where cln-backup is installed: pip install prometheus-client in its virtual "
            "environment, or pipx inject cln-backup prometheus-client."
        ) from None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(nodes, listener))
    handler = type("Handler", (MetricsHandler,), {"registry": registry, "timeout": REQUEST_S})
    server = HttpServer(address, handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return int(server.server_port)
