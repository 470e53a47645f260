"""What a follower asks a store for: little, however large the backup is."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.objects.reader import ObjectsReader
from cln_backup.model.change import Change
from tests.histories import image, payments, prepared, take_over, told
from tests.objects.engine import engine

if TYPE_CHECKING:
    import pytest

    from cln_backup.storage.bucket import Found

_LARGE = Change(3, image(random.Random(1).randbytes(5 << 20).hex()), None)


def test_follower_reads_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    url = engine().url()
    create_backend(url, _LARGE)
    read_bytes = 0
    with open_writer(url) as writer, open_reader(url) as reader:
        assert isinstance(reader, ObjectsReader)
        read = reader.objects.bucket.read

        def counted(key: str, offset_bytes: int, length_bytes: int) -> Found | None:
            nonlocal read_bytes
            found = read(key, offset_bytes, length_bytes)
            read_bytes += 0 if found is None else len(found.content)
            return found

        monkeypatch.setattr(reader.objects.bucket, "read", counted)
        for change in payments(4, 12):
            writer.add_change(change)
            before = reader.standing.position
            assert reader.wait_for_more(0)
            assert told(reader.stream_changes(after=before)) == told([change])
        assert read_bytes < 32 << 10
        assert told(reader.stream_changes()) == told([_LARGE, *payments(4, 12)])
        assert read_bytes > 5 << 20
        read_bytes = 0
        with open_reader(url) as other:
            take_over(writer, prepared(other, Change(10, image("new"), None), foreign_keys=True))
        reader.wait_for_more(0)
        reader._looks = -1  # the next look lists
        reader.wait_for_more(0)
        assert reader.standing.version_count == 2
        assert read_bytes < 32 << 10
