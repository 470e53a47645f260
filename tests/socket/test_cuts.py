"""Whatever is cut, wherever: a change is never lost and never doubled."""

from __future__ import annotations

import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.formats import v1
from cln_backup.model.change import Change
from cln_backup.model.errors import Unreachable, WriterConflict
from cln_backup.wire import packets as wire
from tests.histories import (
    ON,
    add_all,
    append,
    image,
    payment,
    payments,
    rider,
    started_node,
    told,
    told_by,
)
from tests.soak import SOAK
from tests.socket.proxies import DOWN, UP, cut_after, proxy
from tests.socket.serving import ServerHere, ServerProcess, server_here, server_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cln_backup.backends.contract import Writer


@pytest.fixture
def server() -> Iterator[ServerHere]:
    with server_here() as server:
        yield server


def _through(url: str, port: int) -> str:
    return f"socket:127.0.0.1:{port}?{url.partition('?')[2]}"


def _append(backend: Writer) -> None:
    backend.add_change(payment(4, "paid"))


def _append_rider(backend: Writer) -> None:
    backend.add_change(rider(3, ON))


def _append_snapshot(backend: Writer) -> None:
    backend.add_change(Change(7, image(300 * "x"), None))


def _rewind(backend: Writer) -> None:
    backend.rewind()


_WORK: dict[str, tuple[Callable[[Writer], None], list[Change]]] = {
    "transaction": (_append, [*started_node(), payment(4, "paid")]),
    "rider": (_append_rider, [*started_node(), rider(3, ON)]),
    "snapshot": (_append_snapshot, [*started_node(), Change(7, image(300 * "x"), None)]),
    "rewind": (_rewind, started_node()[:-1]),
}


@pytest.mark.parametrize("protocol", [2, 1])
@pytest.mark.parametrize("direction", [UP, DOWN], ids=["request", "answer"])
@pytest.mark.parametrize("what", _WORK)
def test_connection_cut_after_every_byte(
    server: ServerHere, memory_path: Path, what: str, direction: int, protocol: int
) -> None:
    """After every eleventh one, from another one for each kind of work; `make soak`: each."""
    work, expected = _WORK[what]
    length = 0 if SOAK else -list(_WORK).index(what)
    while True:
        length += 1 if SOAK else 11
        url = f"file://{memory_path}/{length}.bkp"
        create_backend(url, None)
        append(url, started_node())
        there = server.add(url)
        if protocol == 1:
            server.nodes.clear()
            server.add(url)
            there = f"socket:{server.address}?protocol=1"
        with proxy(server.address.port, cut_after(direction, length)) as between:
            with open_writer(_through(there, between.port)) as backend:
                work(backend)
                assert backend.version == expected[-1].version
            done = between.connections == 1  # the whole exchange is shorter than this
        for node in server.nodes.values():
            node.close()
        assert told_by(url) == told(expected), length
        if done:
            break
    assert length > 20


@pytest.mark.parametrize("direction", [UP, DOWN], ids=["request", "answer"])
def test_start_over_cut_after_every_byte(
    server: ServerHere, memory_path: Path, direction: int
) -> None:
    """It is done once: the server keeps one earlier history."""
    length, base = 0, Change(2, image(300 * "x"), None)
    while True:
        length += 1 if SOAK else 13
        url = f"file://{memory_path}/{length}.bkp"
        create_backend(url, None)
        append(url, started_node())
        with proxy(server.address.port, cut_after(direction, length)) as between:
            with open_writer(_through(server.add(url), between.port)) as backend:
                backend.start_over(base)
                assert backend.version == base.version
                backend.add_change(payment(3))
            done = between.connections == 1
        for node in server.nodes.values():
            node.close()
        assert told_by(url) == told([base, payment(3)]), length
        assert told_by(f"{url}.before-undo") == told(started_node())
        assert len(list(memory_path.glob(f"{length}.bkp.before-undo*"))) == 1
        if done:
            break
    assert length > 20


@pytest.mark.parametrize("direction", [UP, DOWN], ids=["request", "answer"])
def test_every_change_of_a_stream_comes_once_when_it_is_cut_anywhere(
    server: ServerHere, tmp_path: Path, direction: int
) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    snapshot = Change(9, image("0123456789abcdef" * 48_000), None)
    history = [*started_node(), *payments(4, 9), rider(8), rider(8), snapshot, payment(10)]
    append(url, history)
    there = server.add(url)
    for length in [*range(1, 900, 7 if SOAK else 29), *range(1000, 780_000, 40_009)]:
        with (
            proxy(server.address.port, cut_after(direction, length)) as between,
            open_reader(_through(there, between.port)) as backend,
        ):
            assert told(backend.stream_changes()) == told(history)
            assert told(backend.stream_changes(8)) == told(c for c in history if c.version >= 8)


def test_stream_that_was_cut_goes_on_behind_what_was_had(
    server: ServerHere, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, Change(5, image("x" * 1_000_000), None))
    there = server.add(url)
    seen = 0

    def plan(number: int) -> Callable[[int, bytes], bytes]:
        inner = cut_after(DOWN, 700_000)(number)

        def treat(direction: int, data: bytes) -> bytes:
            nonlocal seen
            seen += len(data) if direction == DOWN else 0
            return inner(direction, data)

        return treat

    with (
        proxy(server.address.port, plan) as between,
        open_reader(_through(there, between.port)) as backend,
    ):
        (change,) = told(backend.stream_changes())
    assert change.version == 5
    assert between.connections == 2
    assert seen < 1_500_000


def test_stream_that_was_cut_stops_at_the_head_it_began_with(
    server: ServerHere, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(url, [*started_node(), *payments(4, 40)])
    there = server.add(url)
    with (
        proxy(server.address.port, cut_after(DOWN, 3000)) as between,
        open_reader(_through(there, between.port)) as reader,
    ):
        changes = reader.stream_changes()
        first = next(changes)
        append(there, payments(40, 60))
        assert told([first, *changes]) == told([*started_node(), *payments(4, 40)])


def _killing(
    server: ServerProcess, killers: list[threading.Timer], direction: int, length: int
) -> Callable[[int], Callable[[int, bytes], bytes]]:
    """Kills the server, and starts it again, when so many bytes came through in a direction."""

    def restart() -> None:
        server.kill()
        server.start()

    def plan(number: int) -> Callable[[int, bytes], bytes]:
        left = length if number == 0 else 1 << 62

        def treat(towards: int, data: bytes) -> bytes:
            nonlocal left
            if killers and number == 0:
                return b""
            if towards == direction:
                left -= len(data)
            if left > 0:
                return data
            killers.append(threading.Timer(0.005, restart))  # when they have come where they go
            killers[0].start()
            return data[:left] if left else data

        return treat

    return plan


@pytest.mark.parametrize("direction", [UP, DOWN], ids=["request", "answer"])
def test_server_killed_at_every_point_of_an_exchange(tmp_path: Path, direction: int) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(url, started_node())
    version = 4
    with server_process(url) as server:
        for length in range(1, 2000, 13):
            killers: list[threading.Timer] = []
            with proxy(server.port, _killing(server, killers, direction, length)) as between:
                append(f"socket:127.0.0.1:{between.port}", payments(version, version + 1))
            version += 1
            for killer in killers:
                killer.join()
            if not killers:  # the whole exchange is shorter than this
                break
    assert version > 12
    assert told_by(url) == told([*started_node(), *payments(4, version)])


@pytest.mark.parametrize("pause_s", [0.0, 0.001, 0.003, 0.01])
def test_server_killed_again_and_again_while_a_node_writes(tmp_path: Path, pause_s: float) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    with server_process(url) as server:
        written = threading.Semaphore(0)
        done = threading.Event()

        def kill() -> None:
            for _ in range(5):
                for _ in range(3):
                    written.acquire()
                time.sleep(pause_s)
                server.kill()
                server.start()
            done.set()

        with open_writer(server.url) as backend:
            killer = threading.Thread(target=kill)
            killer.start()
            add_all(backend, started_node())
            version = 4
            while not done.is_set():
                add_all(backend, payments(version, version + 1))
                version += 1
                written.release()
            killer.join()
    assert told_by(url) == told([*started_node(), *payments(4, version)])


def test_server_stopped_while_a_node_writes_answers_what_it_took(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    with (
        server_process(url) as server,
        open_writer(server.url + "?deadline=1") as backend,
    ):
        add_all(backend, started_node())
        assert server.terminate() == 0
        with pytest.raises(Unreachable, match="could not be reached for 1 seconds"):
            backend.add_change(payment(4))
    assert told_by(url) == told(started_node())


def test_frozen_server_is_waited_for(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    with server_process(url) as server, open_writer(server.url) as backend:
        add_all(backend, started_node())
        server.process.send_signal(signal.SIGSTOP)
        timer = threading.Timer(0.5, server.process.send_signal, [signal.SIGCONT])
        timer.start()
        backend.add_change(payment(4))
        timer.join()
    assert told_by(url) == told([*started_node(), payment(4)])


def test_bytes_that_come_one_by_one_and_late(server: ServerHere, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    there = server.add(url)

    def slowly(_direction: int, data: bytes) -> bytes:
        time.sleep(0.01)
        return data

    with proxy(server.address.port, lambda _: slowly) as between:
        append(_through(there, between.port), [*started_node(), payment(4)])
    assert told_by(url) == told([*started_node(), payment(4)])


def test_half_of_each_packet_then_a_cut_again_and_again(server: ServerHere, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    there = server.add(url)

    def plan(number: int) -> Callable[[int, bytes], bytes]:
        return cut_after(number % 2, 150 + 97 * number, first=number)(number)

    with proxy(server.address.port, plan) as between:
        append(_through(there, between.port), [*started_node(), *payments(4, 30)])
        assert between.connections > 3
    assert told_by(url) == told([*started_node(), *payments(4, 30)])


def test_another_writer_during_a_cut_is_found_out(server: ServerHere, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(url, started_node())
    there = server.add(url)
    with open_writer(there) as backend:
        backend._link.close()  # type: ignore[attr-defined] # the network was gone
        append(there, [payment(4, "by another process")])
        with pytest.raises(WriterConflict):
            backend.add_change(payment(4))
    assert told_by(there) == told([*started_node(), payment(4, "by another process")])


def test_another_writer_during_a_cut_is_found_out_after_a_restart_of_the_server(
    tmp_path: Path,
) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(url, started_node())
    with server_process(url) as server, open_writer(server.url) as backend:
        server.kill()
        append(url, [payment(4, "by another process")])
        server.start()
        with pytest.raises(WriterConflict):
            backend.add_change(payment(4))


@pytest.mark.parametrize("late_first", [True, False])
def test_change_that_is_still_on_its_way_on_a_connection_given_up(
    server: ServerHere, tmp_path: Path, late_first: bool
) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(url, started_node())
    server.add(url)
    change = rider(3, ON)
    assert change.transaction is not None
    payload = wire.pack_change(3, v1.pack_transaction(change.transaction))
    packet = wire.pack_head(wire.CHANGE, len(payload)) + payload
    ask = wire.pack_head(wire.REQ_METADATA, 0)
    with (
        socket.create_connection((server.address.host, server.address.port)) as old,
        socket.create_connection((server.address.host, server.address.port)) as new,
    ):
        for sock in (old, new):
            sock.sendall(ask)
            assert sock.recv(100)[0] == wire.METADATA
        first, second = (old, new) if late_first else (new, old)
        first.sendall(packet)
        assert first.recv(100)[0] == wire.ACK
        second.sendall(packet)
        assert second.recv(100) == b""
    assert told_by(url) == told([*started_node(), change])
