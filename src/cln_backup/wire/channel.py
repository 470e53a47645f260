"""Packets on a socket, with limits on everything that the other side could make large or slow."""

from __future__ import annotations

import contextlib
import select
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
    """One connection. Every method raises `OSError` if it is lost, truncated, or too slow.

    Once a packet has begun, it may pause for at most `stall_s`, and must average 4 KiB a second
    or more. Memory is allocated as bytes arrive, not by the stated length.
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
        """Changes how long the other side may send nothing, or accept nothing."""
        if stall_s != self._stall_s:
            self._stall_s = stall_s
            self._sock.settimeout(stall_s)

    def limit(self, all_s: float | None) -> None:
        """Sets a limit for everything received from now on, in seconds; `None` removes it."""
        self._all_by = None if all_s is None else time.monotonic() + all_s
        self._sock.settimeout(self._stall_s)

    def send(self, packet_type: int, payload: bytes = b"") -> None:
        """Sends a packet and everything queued before it."""
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
        """Sends everything queued."""
        data = b"".join(self._unsent)
        self._unsent.clear()
        self._unsent_bytes = 0
        # In pieces, since the timeout of a send is for the whole of it.
        for start in range(0, len(data), wire.CHUNK_BYTES):
            self._sock.sendall(data[start : start + wire.CHUNK_BYTES])

    def head(self, wait_s: float | None) -> tuple[int, int] | None:
        """Type and payload length of the next packet; `None` if the other side has closed.

        Args:
            wait_s: how long to wait for the packet to begin; `None` for no limit.
        """
        started = time.monotonic()
        while self._start == self._end:
            if wait_s is not None:
                left = started + wait_s - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"nothing was received for {wait_s:.0f} seconds")
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

    def wait_beside(self, fd: int, wait_s: float) -> bool:
        """Waits until another descriptor can be read; returns whether it can.

        Ends at the timeout, and when the other side sends something or closes.
        """
        pending = getattr(self._sock, "pending", None)  # what TLS has decrypted already
        if self._start != self._end or (pending is not None and pending()):
            return False
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(fd, select.POLLIN)
        return fd in dict(poll.poll(max(0.0, wait_s) * 1000))

    def payload(self, length_bytes: int, limit_bytes: int) -> bytes:
        """The payload of the packet whose head was read last. Raises `BadPacket` if too large."""
        if length_bytes > limit_bytes:
            raise BadPacket(f"a packet of {length_bytes} bytes; the limit is {limit_bytes}")
        return self._take(length_bytes)

    def pieces(self, length_bytes: int) -> Iterator[bytes]:
        """The payload of the packet whose head was read last, in pieces as they arrive."""
        while length_bytes:
            piece = self._some(length_bytes)
            length_bytes -= len(piece)
            yield piece

    def _take(self, length_bytes: int) -> bytes:
        if 0 < length_bytes <= self._end - self._start:
            return self._some(length_bytes)
        return b"".join(self.pieces(length_bytes))

    def _some(self, limit_bytes: int) -> bytes:
        """At least one byte and at most `limit_bytes`."""
        if self._start == self._end:
            if time.monotonic() > self._deadline:
                raise TimeoutError("a packet arrived too slowly")
            if not self._receive():
                raise ConnectionResetError("the connection was closed in the middle of a packet")
        start, self._start = self._start, min(self._end, self._start + limit_bytes)
        return bytes(self._view[start : self._start])

    def _receive(self) -> int:
        """Receives into the empty buffer; returns 0 if the other side has closed."""
        if self._all_by is not None:
            left_s = self._all_by - time.monotonic()
            if left_s <= 0:
                raise ConnectionAbortedError("the data arrived too slowly")
            self._sock.settimeout(min(left_s, self._stall_s))
        with interruption.at_once():
            count = self._sock.recv_into(self._buffer)
        self._start, self._end = 0, count
        self.received_bytes += count
        if self._quick:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return count

    def acknowledge_quickly(self) -> None:
        """For a peer that sends a packet's head and payload separately, waiting between them.

        The community's client does, with Nagle's algorithm on: each change would take 40 ms, the
        time for which this side's system delays its acknowledgement.
        """
        self._quick = hasattr(socket, "TCP_QUICKACK")
        if self._quick:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def shut(self) -> None:
        """Ends the connection from another thread: a reader finds it closed."""
        with contextlib.suppress(OSError):
            # The shutdown of a TLS socket's own would continue in plain text.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def shut_reading(self) -> None:
        """Lets the other thread finish and answer what it has read, but read no more."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RD)

    def probe(self) -> None:
        """Makes the system probe within some seconds whether the other side is still there."""
        set_keepalive(self._sock, 1, 1, 2)

    def has_hung_up(self) -> bool:
        """Whether the other side has closed the connection; bytes from before may be unread."""
        poll = select.poll()
        try:
            poll.register(self._sock, getattr(select, "POLLRDHUP", 0))
        except (OSError, ValueError):  # this side has closed it
            return True
        return bool(poll.poll(0))

    def close(self) -> None:
        """Closes the socket; never raises."""
        with contextlib.suppress(OSError):
            self._sock.close()


def set_keepalive(sock: socket.socket, idle_s: int, interval_s: int, probes: int) -> None:
    """Makes the system detect that the other side has gone without closing the connection."""
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
