"""Peers that are slow, silent, or stop in the middle."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from cln_backup.model.errors import BadPacket
from cln_backup.wire.channel import Channel

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    channel = Channel(ours, stall_s=0.05)
    with theirs:
        yield channel, theirs
    channel.close()


def test_peer_that_stops_within_a_packet(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(b"\x01\x00\x00\x00\x05abc")
    assert channel.head(1.0) == (1, 5)
    with pytest.raises(TimeoutError):
        channel.payload(5, 5)


def test_peer_that_says_nothing(pair: tuple[Channel, socket.socket]) -> None:
    with pytest.raises(TimeoutError, match="nothing was received"):
        pair[0].head(0.1)


def test_peer_that_closes_between_packets_and_within_one(
    pair: tuple[Channel, socket.socket],
) -> None:
    channel, theirs = pair
    theirs.sendall(b"\x01\x00\x00\x00\x00\x02")
    theirs.shutdown(socket.SHUT_WR)
    assert channel.head(1.0) == (1, 0)
    assert channel.payload(0, 0) == b""
    with pytest.raises(ConnectionResetError, match="in the middle of a packet"):
        channel.head(1.0)


def test_payload_over_the_limit_is_not_read(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(b"\x01\xff\xff\xff\xff")
    assert channel.head(1.0) == (1, 0xFFFF_FFFF)
    with pytest.raises(BadPacket, match="4294967295 bytes"):
        channel.payload(0xFFFF_FFFF, 100)
    assert channel.received_bytes == 5


def test_peer_that_does_not_read(pair: tuple[Channel, socket.socket]) -> None:
    with pytest.raises(TimeoutError):
        pair[0].send(1, bytes(1 << 26))
