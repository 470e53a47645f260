"""Buckets that keep what is removed: with versions, and with a lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer, place_at
from cln_backup.backends.objects import merging
from cln_backup.backends.objects.log_objects import LogObjects
from cln_backup.backends.objects.place import ObjectsPlace
from cln_backup.model.errors import WriterConflict
from tests.histories import add_all, append, payments, started_node, told, told_by
from tests.objects import engine as store
from tests.objects.memory import many_machines

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["many_machines"]

_SET_UP = """s3.bucket.create -name versioned
s3.bucket.versioning -name versioned -enable
s3.bucket.create -name locked
s3.bucket.lock -name locked -enable"""


@pytest.mark.usefixtures("many_machines")
def test_bucket_that_keeps_what_is_removed_takes_a_backup(tmp_path: Path) -> None:
    ports = store.free_ports(4)
    with (tmp_path / "log").open("wb") as log:
        process = store.start(tmp_path, ports, log=log)
    try:
        store.wait_until_ready(tmp_path, ports[0], process)
        store.shell(ports, _SET_UP)
        running = store.Engine(ports[0], tmp_path / "credentials")
        for bucket in ("versioned", "locked"):
            _use(running.url("node").replace(f"s3://{store.BUCKET}/", f"s3://{bucket}/"))
    finally:
        process.kill()
        process.wait()


def _use(url: str) -> None:
    create_backend(url, None)
    append(url, [*started_node(), *payments(4, 12)])
    stale = open_writer(url)
    place = place_at(url)
    assert isinstance(place, ObjectsPlace)
    assert merging.merge(LogObjects(place.bucket(60.0)), unmerged=1, least=2) > 8
    append(url, payments(12, 15))
    with pytest.raises(WriterConflict):  # also where a removed name has earlier versions
        add_all(stale, payments(12, 13))
    stale.close()
    assert told_by(url) == told([*started_node(), *payments(4, 15)])
    with open_reader(url) as reader:
        reader.check()
