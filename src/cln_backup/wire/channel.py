"""Packets on a socket, with a limit on everything that the other side could make large or slow."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

from cln_backup.model.errors import BadPacket
from cln_backup.storage import interruption
from cln_backup.wire import packets as wire

if TYPE_CHECKING:
    from collections.abc import Iterator

_BUFFER_BYTES = 1 << 15
_FLUSH_BYTES = 1 << 16
_MIN_RATE_BYTES_S = 4096
_KEEPALIVE_IDLE_S = 15
_KEEPALIVE_INTERVAL_S = 5
_KEEPALIVE_PROBES = 4


class Channel:
    """One connection. Every method raises `OSError` when it is lost, cut, or too slow.

    A packet that has begun must go on: no more than `stall_s` without a byte, and no slower in
    all than 4 KiB a second. Memory is taken as bytes come, not as a length promises them.
    """

    def __init__(self, sock: socket.socket, *, stall_s: float) -> None:
        self._sock = sock
        self._stall_s = stall_s
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._deadline = 0.0
        self._all_by: float | None = None
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._quick = False
        self.received_bytes = 0
        sock.settimeout(stall_s)
        with contextlib.suppress(OSError):  # a test's pair of Unix sockets
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        set_keepalive(sock, _KEEPALIVE_IDLE_S, _KEEPALIVE_INTERVAL_S, _KEEPALIVE_PROBES)

    def bound_stall(self, stall_s: float) -> None:
        """Changes how long the other side may bring nothing, or take nothing."""
        if stall_s != self._stall_s:
            self._stall_s = stall_s
            self._sock.settimeout(stall_s)

    def limit(self, all_s: float | None) -> None:
        """From now on all must have come within `all_s`, however it comes; `None` ends that."""
        self._all_by = None if all_s is None else time.monotonic() + all_s
        self._sock.settimeout(self._stall_s)

    def send(self, packet_type: int, payload: bytes = b"") -> None:
        """Sends a packet and all that was queued before it."""
        self.queue(packet_type, payload)
        self.flush()

    def queue(self, packet_type: int, payload: bytes) -> None:
        """Sends a packet soon: with the next ones, or at the next `flush`."""
        self._unsent += (wire.pack_head(packet_type, len(payload)), payload)
        self._unsent_bytes += wire.HEAD_BYTES + len(payload)
        if self._unsent_bytes >= _FLUSH_BYTES:
            self.flush()

    def send_head(self, packet_type: int, length_bytes: int) -> None:
        """Sends the start of a packet whose payload follows by `send_bytes`."""
        self._unsent.append(wire.pack_head(packet_type, length_bytes))
        self.flush()

    def send_bytes(self, data: bytes) -> None:
        """Sends a part of a payload."""
        self._sock.sendall(data)

    def flush(self) -> None:
        """Sends what was queued."""
        data = b"".join(self._unsent)
        self._unsent.clear()
        self._unsent_bytes = 0
        # In pieces, since the time limit of a send is for all of it.
        for start in range(0, len(data), wire.CHUNK_BYTES):
            self._sock.sendall(data[start : start + wire.CHUNK_BYTES])

    def head(self, wait_s: float | None) -> tuple[int, int] | None:
        """Type and payload length of the next packet; `None` when the other side has closed.

        Args:
            wait_s: how long the packet may take to begin; `None` for as long as it likes.
        """
        started = time.monotonic()
        while self._start == self._end:
            if wait_s is not None:
                left = started + wait_s - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"nothing came for {wait_s:.0f} seconds")
                self._sock.settimeout(min(left, self._stall_s))
            try:
                if not self._receive():
                    return None
            except TimeoutError:
                continue
            finally:
                if wait_s is not None:
                    self._sock.settimeout(self._stall_s)
        self._deadline = time.monotonic() + self._stall_s
        packet_type, length = wire.unpack_head(self._take(wire.HEAD_BYTES))
        self._deadline += length / _MIN_RATE_BYTES_S
        return packet_type, length

    def payload(self, length_bytes: int, limit_bytes: int) -> bytes:
        """The payload of the packet whose head came last. Raises `BadPacket` when too large."""
        if length_bytes > limit_bytes:
            raise BadPacket(f"a packet of {length_bytes} bytes, where {limit_bytes} are the most")
        return self._take(length_bytes)

    def pieces(self, length_bytes: int) -> Iterator[bytes]:
        """The payload of the packet whose head came last, piece by piece as it comes."""
        while length_bytes:
            piece = self._some(length_bytes)
            length_bytes -= len(piece)
            yield piece

    def _take(self, length_bytes: int) -> bytes:
        if 0 < length_bytes <= self._end - self._start:
            return self._some(length_bytes)
        return b"".join(self.pieces(length_bytes))

    def _some(self, limit_bytes: int) -> bytes:
        """At least one byte and at most so many."""
        if self._start == self._end:
            if time.monotonic() > self._deadline:
                raise TimeoutError("a packet came too slowly")
            if not self._receive():
                raise ConnectionResetError("the connection was closed within a packet")
        start, self._start = self._start, min(self._end, self._start + limit_bytes)
        return bytes(self._view[start : self._start])

    def _receive(self) -> int:
        """Fills the empty buffer with what is there; returns 0 when the other side has closed."""
        if self._all_by is not None:
            left_s = self._all_by - time.monotonic()
            if left_s <= 0:
                raise ConnectionAbortedError("what was due came too slowly")
            self._sock.settimeout(min(left_s, self._stall_s))
        with interruption.at_once():
            count = self._sock.recv_into(self._buffer)
        self._start, self._end = 0, count
        self.received_bytes += count
        if self._quick:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return count

    def acknowledge_quickly(self) -> None:
        """For a peer that sends a packet's head and payload apart, waiting between them.

        The community's client does, with Nagle's algorithm on: each change would take the 40 ms
        for which this side's system holds back its acknowledgement.
        """
        self._quick = hasattr(socket, "TCP_QUICKACK")
        if self._quick:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def shut(self) -> None:
        """Ends the connection from another thread: whoever reads from it finds it closed."""
        with contextlib.suppress(OSError):
            # Of a TLS socket its own shutdown would go on in plain text.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def shut_reading(self) -> None:
        """Lets the other thread finish what it has read, and answer it, but read no more."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RD)

    def probe(self) -> None:
        """Has the system find out within some seconds whether the other side is still there."""
        set_keepalive(self._sock, 1, 1, 2)

    def close(self) -> None:
        """Closes the socket; never raises."""
        with contextlib.suppress(OSError):
            self._sock.close()


def set_keepalive(sock: socket.socket, idle_s: int, interval_s: int, probes: int) -> None:
    """Has the system notice when the other side has gone without a word."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE", idle_s),
            ("TCP_KEEPINTVL", interval_s),
            ("TCP_KEEPCNT", probes),
        ):
            option = getattr(socket, name, None)
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        user_timeout = getattr(socket, "TCP_USER_TIMEOUT", None)
        if user_timeout is not None:
            sock.setsockopt(socket.IPPROTO_TCP, user_timeout, (idle_s + interval_s * probes) * 1000)
