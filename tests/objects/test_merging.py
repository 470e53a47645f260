"""Objects of the log that are merged into packs while the backup is written and read."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer, place_at
from cln_backup.backends.dir.store import segment_name
from cln_backup.backends.objects import merging, upkeep
from cln_backup.backends.objects.layout import pack, unpack
from cln_backup.backends.objects.log_objects import LogObjects
from cln_backup.backends.objects.place import ObjectsPlace
from cln_backup.backends.objects.writer import ObjectsWriter
from cln_backup.formats import v2
from cln_backup.model.errors import AccessDenied, Damaged, StorageError, WriterConflict
from cln_backup.storage.object_store import ObjectStoreBucket
from tests.histories import add_all, append, payments, prepared, started_node, told, told_by
from tests.objects.engine import engine
from tests.random_node import RandomNode

if TYPE_CHECKING:
    from collections.abc import Sequence

_HISTORY = [*started_node(), *payments(4, 25)]


def _objects(url: str) -> LogObjects:
    place = place_at(url)
    assert isinstance(place, ObjectsPlace)
    return LogObjects(place.bucket(60.0))


def _merge(url: str, *, unmerged: int = 2, least: int = 3) -> int:
    return merging.merge(_objects(url), unmerged=unmerged, least=least)


@pytest.fixture
def url() -> str:
    """A backup whose log has the changes of two writers."""
    url = engine().url()
    create_backend(url, None)
    append(url, _HISTORY[:10])
    append(url, _HISTORY[10:])
    return url


def test_merged_log_is_read_as_before_and_written_on(url: str) -> None:
    with open_reader(url) as reader, open_writer(url) as writer:
        before = _objects(url).refresh()
        assert _merge(url) > 10
        after = _objects(url).refresh()
        assert after.fences == before.fences  # no name of one may become free
        assert len(after.singles) < 5
        assert told(reader.stream_changes()) == told(_HISTORY)  # by its listing of before
        assert told_by(url) == told(_HISTORY)
        add_all(writer, payments(25, 40))
    _merge(url)
    assert told_by(url) == told([*_HISTORY, *payments(25, 40)])
    with open_reader(url) as reader:
        reader.check()


def test_writer_that_stood_still_is_refused_after_a_merge(url: str) -> None:
    stale = open_writer(url)
    assert isinstance(stale, ObjectsWriter)
    add_all(stale, payments(25, 27))
    stale._lock.release()  # as if on another machine
    append(url, payments(27, 60))
    assert _merge(url, unmerged=0, least=1) > 30
    with pytest.raises(WriterConflict):
        add_all(stale, payments(27, 28))
    stale.close()
    assert told_by(url) == told([*_HISTORY, *payments(25, 60)])


def test_writer_that_stood_still_before_its_first_change_gets_no_removed_name(url: str) -> None:
    """A store forgets the names that it removed, so put if absent succeeds there again."""
    with open_writer(url) as active:
        assert isinstance(active, ObjectsWriter)
        add_all(active, payments(25, 27))
        active._lock.release()  # as if on another machine
        with open_writer(url) as stale:
            add_all(active, payments(27, 60))
            assert _merge(url, unmerged=0, least=1) > 30
            with pytest.raises(WriterConflict, match="Another process wrote"):
                add_all(stale, payments(27, 28))
        active.add_change(payments(60, 61)[0])
    assert told_by(url) == told([*_HISTORY, *payments(25, 61)])


@pytest.mark.parametrize("seed", range(2))
def test_any_history_is_the_same_merged(seed: int) -> None:
    url, chance = engine().url(), random.Random(seed)
    create_backend(url, None)
    node = RandomNode(url, chance, compacts=True)
    for _ in range(40):
        node.step()
        if chance.random() < 0.15:
            _merge(url, unmerged=chance.randrange(3), least=chance.randrange(1, 4))
    node.close()
    assert told_by(url)[-1] == told(node.history)[-1]
    _merge(url, unmerged=0, least=1)
    with open_reader(url) as reader:
        assert reader.standing.position.changes == len(node.history)
        reader.check()


class _Stopping(ObjectStoreBucket):
    """A bucket whose process is killed at one of its requests that change something."""

    left: int

    def _spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise StorageError("killed")

    def put_new(self, key: str, content: bytes) -> bool:
        self._spend()
        return super().put_new(key, content)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:  # as a store may, one by one
            self._spend()
            super().delete([key])


def test_merge_that_is_killed_at_any_request_loses_nothing(url: str) -> None:
    stopped = True
    left = 0
    while stopped:
        objects = _objects(url)
        bucket = objects.bucket
        bucket.__class__ = _Stopping
        bucket.left = left  # type: ignore[attr-defined]
        try:
            merging.merge(objects, unmerged=1, least=2)
            stopped = False
        except StorageError:
            assert told_by(url) == told(_HISTORY)
        left += 3
    assert left > 6
    assert told_by(url) == told(_HISTORY)


class _Keeping(ObjectStoreBucket):
    """A bucket with no right to remove."""

    def delete(self, keys: Sequence[str]) -> None:
        if keys:
            raise AccessDenied("no right to remove")


def test_without_the_right_to_remove_nothing_is_packed_twice(url: str) -> None:
    for _ in range(3):
        objects = _objects(url)
        objects.bucket.__class__ = _Keeping
        with pytest.raises(AccessDenied):
            merging.merge(objects, unmerged=2, least=3)
    assert len(objects.refresh().packs) == 1
    assert told_by(url) == told(_HISTORY)
    _merge(url)
    assert len(_objects(url).refresh().singles) < 5
    assert told_by(url) == told(_HISTORY)


def test_object_that_differs_from_its_pack_is_not_removed(url: str) -> None:
    _merge(url)
    objects = _objects(url)
    name = segment_name(objects.refresh().packs[0][0])
    objects.bucket.put_new(name, b"other bytes of a segment")
    with pytest.raises(Damaged, match=name):
        _merge(url)
    assert objects.bucket.status(name) is not None
    assert told_by(url) == told(_HISTORY)


def test_two_that_merge_the_same_objects_lose_nothing(url: str) -> None:
    one, other = _objects(url), _objects(url)
    one.refresh()
    merging.merge(other, unmerged=2, least=3)
    with pytest.raises(StorageError, match="another process merges"):
        merging._merge(one, one.layout.singles[:8])
    assert told_by(url) == told(_HISTORY)


def test_busy_writer_merges_by_itself(url: str) -> None:
    count = merging.LEAST + merging.UNMERGED
    with open_writer(url) as writer:
        add_all(writer, payments(25, 25 + count))
        assert isinstance(writer, ObjectsWriter)
        assert writer._upkeep is not None
        writer._upkeep.wait(60.0)
        layout = _objects(url).refresh()
        assert layout.packs
        assert len(layout.singles) <= merging.UNMERGED
    assert told_by(url) == told([*_HISTORY, *payments(25, 25 + count)])


def test_replaced_generation_stays_for_those_who_read_it(url: str) -> None:
    from cln_backup.model.change import Change
    from tests.histories import image

    _merge(url)
    with open_reader(url) as reader:
        with open_writer(url) as writer:
            base = Change(20, image("all before the head"), None)
            writer.take_over(prepared(reader, base, foreign_keys=True))
        upkeep.remove_expired(_objects(url), 0, 0)
        assert told(reader.stream_changes()) == told(_HISTORY)
    before = _objects(url).refresh()
    upkeep.remove_expired(_objects(url), 0, 0, grace_s=0.0)
    after = _objects(url).refresh()
    assert len(after.bases) < len(before.bases)
    assert after.fences == before.fences
    assert told_by(url)[0].version == 20


@pytest.mark.parametrize("cut", [0, 4, 8, 11, 12, 20, 30, -1])
def test_pack_that_is_cut_off_is_refused(cut: int) -> None:
    content = pack([(7, b"seven"), (9, b"nine")])
    assert unpack(content) == {7: b"seven", 9: b"nine"}
    with pytest.raises(v2.Malformed):
        unpack(content[:cut])
