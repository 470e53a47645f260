"""A network that loses, repeats, delays and refuses requests, before a real store."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer, place_at
from cln_backup.model.change import Change
from cln_backup.model.errors import Unreachable, WriterConflict
from tests.histories import (
    add_all,
    image,
    payments,
    prepared,
    started_node,
    take_over,
    told,
    told_by,
)
from tests.objects.engine import engine
from tests.objects.memory import many_machines
from tests.objects.proxy import ALL, proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.objects.proxy import Proxy

__all__ = ["many_machines"]


@pytest.fixture
def bad() -> Iterator[Proxy]:
    with proxy(engine().port, random.Random(5)) as server:
        yield server


def _through(url: str, bad: Proxy) -> str:
    return url.replace(f"127.0.0.1:{engine().port}", f"127.0.0.1:{bad.port}")


def test_every_answered_change_is_stored_once(bad: Proxy) -> None:
    direct = engine().url()
    url = _through(direct, bad)
    create_backend(url, None)
    history = [*started_node(), *payments(4, 22)]
    with open_writer(url) as writer:
        for change in history:
            writer.add_change(change)
        with open_reader(url) as reader:
            assert told(reader.stream_changes()) == told(history)
            base = Change(20, image(random.Random(1).randbytes(5 << 20).hex()), None)  # in parts
            take_over(writer, prepared(reader, base, foreign_keys=True))
        writer.rewind()
        add_all(writer, payments(21, 23))
    assert told_by(direct) == told([base, *payments(21, 23)])
    assert told_by(url) == told_by(direct)
    assert len(bad.counts) > 4


@pytest.mark.usefixtures("many_machines")
def test_node_that_was_cut_off_is_fenced_and_stores_nothing(bad: Proxy) -> None:
    direct = engine().url()
    bad.fates = ()
    create_backend(direct, None)
    with open_writer(_through(direct, bad)) as old:
        add_all(old, started_node())
        bad.fates, bad.bad = ("cut before",), 1.0
        with pytest.raises(Unreachable, match="answered before is stored there"):
            old.add_change(payments(4, 5)[0], 0.3)
        with place_at(direct).fence() as new:
            bad.fates = ()
            assert new.version == 3
            add_all(new, payments(4, 6))
    with open_writer(_through(direct, bad)) as stale:
        stale.add_change(payments(6, 7)[0])
        with open_writer(direct) as newest:
            newest.add_change(payments(7, 8)[0])
            bad.fates = ALL
            bad.bad = 0.5
            with pytest.raises(WriterConflict, match="Another process wrote"):
                stale.add_change(payments(7, 8)[0])
    assert told_by(direct) == told([*started_node(), *payments(4, 8)])
