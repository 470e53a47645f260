"""Metrics for Prometheus, on a listener of their own. Needs the extra `metrics`."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from cln_backup.model.errors import BadSettings
from cln_backup.monitor.http import REQUEST_S, HttpServer
from cln_backup.server.node_state import state_of
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
                ("free_bytes", "Room on the disk of the backup"),
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
            state, is_sealed = state_of(node), isinstance(node, Sealed)
            stored_at = node.last_stored_at if isinstance(node, Sealed) else None
            if isinstance(node, Served):
                gauges["alarm"].add_metric([name], state.alarm is not None)
            for gauge, figure in (
                ("head_version", state.version),
                ("size_bytes", state.backupsize),
                ("objects" if is_sealed else "changes", state.version_count),
                ("quota_bytes", state.quota_bytes),
                ("last_object_timestamp_seconds", stored_at),
                ("last_change_age_seconds", None if is_sealed else state.last_change_age_s),
                ("space_bound_bytes", state.space_bound_bytes),
                ("proven_version", state.proven_version),
                ("proven_timestamp_seconds", state.proven_at),
                ("proof_lag_seconds", state.proof_lag_s),
                ("integrity_timestamp_seconds", state.replica_checked_at),
                ("free_bytes", state.free_bytes),
            ):
                if figure is not None:
                    gauges[gauge].add_metric([name], figure)
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
