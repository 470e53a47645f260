"""An engine that refuses, loses and doubles requests; missing rights; two writers that race."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer, place_at
from cln_backup.backends.objects import merging
from cln_backup.backends.objects.log_objects import LogObjects
from cln_backup.backends.objects.place import ObjectsPlace
from cln_backup.model.change import Change
from cln_backup.model.errors import AccessDenied, BadUrl, Unreachable, WriterConflict
from tests.histories import (
    add_all,
    append,
    image,
    payments,
    prepared,
    started_node,
    take_over,
    told,
    told_by,
)
from tests.objects.engine import engine
from tests.objects.faults import CUT, DOUBLED, LATE, LOST, REFUSED, Fault, faulty
from tests.objects.memory import many_machines
from tests.soak import SOAK

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["many_machines"]

_HISTORY = [*started_node(), *payments(4, 10)]
_FAULTS = [
    *(REFUSED, LOST, CUT, DOUBLED, LATE, Fault(503, 1), Fault(500, 1), Fault(500)),
    *(Fault(429), Fault(409, 0, "OperationAborted"), Fault(409, 0, "ConditionalRequestConflict")),
]


def _through(url: str, port: int) -> str:
    return re.sub(r"(endpoint=http://127\.0\.0\.1):\d+", rf"\1:{port}", url)


def _made(url: str) -> str:
    create_backend(url, None)
    append(url, _HISTORY)
    return url


def _by_chance(seed: int) -> Callable[[str, str], Fault | None]:
    chance, lock = random.Random(seed), threading.Lock()

    def plan(method: str, path: str) -> Fault | None:
        del method, path
        with lock:
            return chance.choice(_FAULTS) if chance.random() < 0.3 else None

    return plan


@pytest.mark.parametrize("seed", range(20 if SOAK else 1))
def test_every_answered_change_is_stored_once(seed: int) -> None:
    direct = engine().url()
    history = [*started_node(), *payments(4, 22)]
    with faulty(engine().port, _by_chance(seed)) as between:
        url = _through(direct, between.port)
        create_backend(url, None)
        with open_writer(url) as writer:
            add_all(writer, history)
            with open_reader(url) as reader:
                assert told(reader.stream_changes()) == told(history)
                base = Change(20, image(random.Random(1).randbytes(5 << 20).hex()), None)
                take_over(writer, prepared(reader, base, foreign_keys=True))  # in parts
            writer.rewind()
            add_all(writer, payments(21, 23))
        assert told_by(url) == told([base, *payments(21, 23)])
    assert told_by(direct) == told([base, *payments(21, 23)])


@pytest.mark.usefixtures("many_machines")
def test_node_that_was_cut_off_is_fenced_and_stores_nothing() -> None:
    direct, isolated = engine().url(), False
    create_backend(direct, None)
    with faulty(engine().port, lambda *_: CUT if isolated else None) as between:
        there = _through(direct, between.port)
        with open_writer(there) as old:
            add_all(old, started_node())
            isolated = True
            with pytest.raises(Unreachable, match="answered before is stored there"):
                old.add_change(payments(4, 5)[0], 0.3)
            with place_at(direct).fence() as new:
                isolated = False
                assert new.version == 3
                add_all(new, payments(4, 6))
        with open_writer(there) as stale:
            add_all(stale, payments(6, 7))
            append(direct, payments(7, 8))
            between.plan = _by_chance(1)
            with pytest.raises(WriterConflict, match="Another process wrote"):
                add_all(stale, payments(7, 8))
    assert told_by(direct) == told([*started_node(), *payments(4, 8)])


@pytest.mark.parametrize("fault", _FAULTS)
def test_put_of_a_change_is_settled_whatever_happens_to_its_answer(fault: Fault) -> None:
    url = _made(engine().url())
    left = 0

    def plan(method: str, path: str) -> Fault | None:
        nonlocal left
        if method == "PUT" and "log-" in path and left:
            left -= 1
            return fault
        return None

    with faulty(engine().port, plan) as between, open_writer(_through(url, between.port)) as writer:
        for change in payments(10, 13):
            left = 2
            add_all(writer, [change])
            assert told_by(url)[-1] == told([change])[0]
    assert told_by(url) == told([*_HISTORY, *payments(10, 13)])


@pytest.mark.parametrize("code", ["RequestTimeTooSkewed", "ExpiredToken"])
def test_credential_that_expires_or_a_wrong_clock_is_waited_for_and_named(code: str) -> None:
    """Something else renews a credential, or sets the clock; until then nothing is answered."""
    url = _made(f"{engine().url()}&deadline=60")
    said: list[str] = []
    left = 3

    def plan(method: str, path: str) -> Fault | None:
        nonlocal left
        if method == "PUT" and "log-" in path and left:
            left -= 1
            return Fault(400 if code == "ExpiredToken" else 403, 0, code)
        return None

    with (
        faulty(engine().port, plan) as between,
        place_at(_through(url, between.port)).open_writer(
            on_event=lambda event: said.append(event.text)
        ) as writer,
    ):
        add_all(writer, payments(10, 12))
    assert any(code in text for text in said)
    assert told_by(url) == told([*_HISTORY, *payments(10, 12)])


def test_clock_that_was_wrong_from_the_start_is_named_at_once() -> None:
    url = _made(engine().url())
    skewed = Fault(403, 0, "RequestTimeTooSkewed")
    with (
        faulty(engine().port, lambda *_: skewed) as between,
        pytest.raises(AccessDenied, match="clock"),
    ):
        open_writer(_through(url, between.port))


def test_silent_endpoint_is_given_up_at_the_deadline() -> None:
    url = _made(engine().url())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        there = f"{_through(url, silent.getsockname()[1])}&deadline=1"
        with pytest.raises(Unreachable, match="answered before is stored"):
            open_reader(there)
    with open_writer(f"{url}&deadline=1") as writer:
        add_all(writer, payments(10, 11))
    assert told_by(url) == told([*_HISTORY, *payments(10, 11)])


def _without_deletes(method: str, path: str) -> Fault | None:
    if method == "DELETE" or (method == "POST" and "delete" in path):
        return Fault(403, 0, "AccessDenied")
    return None


def test_bucket_in_which_nothing_may_be_removed_takes_a_backup() -> None:
    """A key without that right, or a bucket with a lock: what a thief of the key cannot remove."""
    url = engine().url()
    with faulty(engine().port, _without_deletes) as between:
        there = _through(url, between.port)
        _made(there)
        place = place_at(there)
        assert isinstance(place, ObjectsPlace)
        with pytest.raises(AccessDenied):
            merging.merge(LogObjects(place.bucket(20.0)), unmerged=2, least=3)
        with open_writer(there) as writer:
            add_all(writer, payments(10, 14))
        assert told_by(there) == told([*_HISTORY, *payments(10, 14)])


def test_store_that_ignores_the_condition_is_refused_at_init(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import obstore

    put = obstore.put

    def unconditional(*arguments: object, **options: object) -> object:
        options["mode"] = "overwrite"
        return put(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(obstore, "put", unconditional)
    url = engine().url()
    with pytest.raises(BadUrl, match="does not support put if absent"):
        create_backend(url, None)
    place = place_at(url)
    assert isinstance(place, ObjectsPlace)
    assert place.bucket(20.0).list() == []
    unfenced = f"{url}&fencing=none"
    _made(unfenced)
    said: list[str] = []
    with place_at(unfenced).open_reader(on_event=lambda event: said.append(event.text)):
        assert "fencing=none" in said[0]


def _raced(url: str, rounds: int) -> None:
    """Two writers that do not know of each other, from one state, again and again."""
    create_backend(url, None)
    append(url, started_node())
    version = 3
    for number in range(rounds):
        writers = []
        for _ in range(2):
            writers.append(open_writer(url))
        answered: list[tuple[int, int]] = []

        def write(which: int, start: int = version) -> None:
            with contextlib.suppress(WriterConflict):
                for step in range(2):
                    add_all(writers[which], payments(start + 1 + step, start + 2 + step))  # noqa: B023
                    answered.append((start + 1 + step, which))  # noqa: B023

        threads = [threading.Thread(target=write, args=(which,)) for which in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for writer in writers:
            writer.close()
        versions = [found for found, _ in answered]
        assert len(versions) == len(set(versions)), (number, answered)
        with open_reader(url) as reader:
            assert reader.version >= max(versions, default=version)
            version = reader.version


@pytest.mark.usefixtures("many_machines")
def test_of_two_writers_in_a_store_never_both_are_answered() -> None:
    _raced(engine().url(), 300 if SOAK else 10)


@pytest.mark.usefixtures("many_machines")
def test_of_two_writers_in_a_directory_never_both_are_answered(memory_path: Path) -> None:
    _raced(f"objects://{memory_path}/objects", 1000 if SOAK else 60)
