"""The bytes after the last record: torn by a crash, or damaged; wherever the sectors end."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends.dir.records import Tail, judge_tail
from cln_backup.formats import v2
from cln_backup.storage.source import BytesSource

if TYPE_CHECKING:
    from collections.abc import Iterator

_FILE_BYTES = 4096
_SECTOR_BYTES = v2.SECTOR_BYTES
_LENGTHS = (9, 13, 40, 200, 229, 240, 256, 300, 480, 512, 513, 1_000, 1_024)


def _record(choices: random.Random, length: int) -> bytes:
    """Bytes of a record, except for the seal, which is not checked here."""
    body = choices.randbytes(length + v2.SEAL_BYTES)
    return v2.pack_head(length) + body + v2.pack_foot(length)


def _judged(offset: int, content: bytes) -> Tail:
    data = (b"\xaa" * offset + content).ljust(_FILE_BYTES, b"\x00")
    return judge_tail(BytesSource(data), offset)


def _without_sectors(offset: int, record: bytes) -> Iterator[bytes]:
    """The record with each choice of its sectors missing, but for none and for all of them."""
    first, last = offset // _SECTOR_BYTES, (offset + len(record) - 1) // _SECTOR_BYTES
    for kept in itertools.product((False, True), repeat=last - first + 1):
        if all(kept) or not any(kept):
            continue
        data = bytearray(record)
        for sector, is_there in enumerate(kept, first):
            if not is_there:
                start = max(0, sector * _SECTOR_BYTES - offset)
                stop = min(len(record), (sector + 1) * _SECTOR_BYTES - offset)
                data[start:stop] = bytes(stop - start)
        yield bytes(data)


@pytest.mark.parametrize("length", _LENGTHS)
def test_record_whose_sectors_are_missing_is_torn(length: int) -> None:
    choices = random.Random(length)
    judged = 0
    for offset in range(_SECTOR_BYTES, 2 * _SECTOR_BYTES):
        for content in _without_sectors(offset, _record(choices, length)):
            assert _judged(offset, content) is Tail.TORN, offset
            judged += 1
    assert judged >= 2 * (length + v2.FRAME_BYTES - 1)


@pytest.mark.parametrize("length", _LENGTHS)
def test_whole_record_with_a_flipped_bit_is_damaged(length: int) -> None:
    choices = random.Random(length)
    for offset in range(_SECTOR_BYTES, 2 * _SECTOR_BYTES, 3):
        record = _record(choices, length)
        behind = _record(choices, 30) if offset % 2 else b""
        ends = v2.HEAD_BYTES * 8
        some = choices.sample(range(len(record) * 8), 12)
        for bit in (*range(ends), *some, *range(len(record) * 8 - ends, len(record) * 8)):
            flipped = bytearray(record + behind)
            flipped[bit // 8] ^= 1 << bit % 8
            assert _judged(offset, bytes(flipped)) is Tail.DAMAGED, (offset, bit)


def test_bit_that_is_set_in_the_zeros_is_damage() -> None:
    assert _judged(700, b"") is Tail.CLEAN
    for offset in range(_SECTOR_BYTES, 2 * _SECTOR_BYTES, 5):
        for place in (0, 1, v2.HEAD_BYTES, 34, 511, 512, 1_023, 1_024, 2_000):
            for bit in range(8):
                content = bytes(place) + bytes([1 << bit])
                assert _judged(offset, content) is Tail.DAMAGED, (offset, place, bit)
