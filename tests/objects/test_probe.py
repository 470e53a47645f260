"""What `init` finds out about a store, and a backup in one that does not do what it should."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, place_at
from cln_backup.backends.objects.probe import probe
from cln_backup.model.errors import AccessDenied, BadUrl
from tests.histories import append, payment, started_node, told, told_by
from tests.objects.engine import engine
from tests.objects.memory import Done, Memory, MemoryBucket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cln_backup.backends.events import Event
    from cln_backup.storage.bucket import Listed


class _Ignoring(MemoryBucket):
    """Ignores the condition, as some stores do."""

    def put_new(self, key: str, content: bytes) -> bool:
        self.memory.objects[key] = content
        return True


class _Forgetful(MemoryBucket):
    """Lists what was there some time ago."""

    def list(self, prefix: str = "") -> Sequence[Listed]:
        del prefix
        return []


class _Keeping(MemoryBucket):
    """Gives no right to remove."""

    def delete(self, keys: Sequence[str]) -> None:
        raise AccessDenied(f"{len(keys)} are kept")


def test_store_that_does_what_is_needed_is_left_as_it_was() -> None:
    memory = Memory([Done("other", b"content")])
    probe(MemoryBucket(memory))
    assert memory.objects == {"other": b"content"}
    probe(_Keeping(memory))  # the right to remove is not needed


@pytest.mark.parametrize(
    ("kind", "why"),
    [(_Ignoring, "does not support put if absent"), (_Forgetful, "lacks an object")],
)
def test_store_that_does_not_is_refused(kind: type[MemoryBucket], why: str) -> None:
    memory = Memory()
    with pytest.raises(BadUrl, match=why):
        probe(kind(memory))
    assert not memory.objects


def test_backup_without_fencing_says_so_at_every_opening() -> None:
    url = engine().url(fencing="none")
    create_backend(url, None)
    append(url, started_node())
    said: list[Event] = []
    with place_at(url).open_writer(on_event=said.append) as writer:
        writer.add_change(payment(4))
    with place_at(url).open_reader(on_event=said.append):
        pass
    assert ["fencing=none" in event.text for event in said] == [True, True]
    assert told_by(url) == told([*started_node(), payment(4)])
