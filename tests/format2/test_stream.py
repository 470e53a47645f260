"""Properties of the records of one file."""

from __future__ import annotations

import contextlib
import os
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cln_backup.formats import v2
from cln_backup.formats.seals import DigestSealer, KeySealer
from cln_backup.formats.v2_stream import Decoder, Encoder, Inflater

START = bytes(16)
RECORDS = st.lists(
    st.tuples(
        st.sampled_from(list(v2.Type)), st.integers(0, v2.MAX_VERSION), st.binary(max_size=2_000)
    ),
    min_size=1,
    max_size=12,
)
SEALERS = st.sampled_from([DigestSealer(), KeySealer(bytes(32))])


def _decoded(records: list[bytes], sealer: DigestSealer | KeySealer) -> list[object]:
    decoder, inflater = Decoder(sealer, START), Inflater()
    found: list[object] = []
    for data in records:
        decoded = decoder.decode(data, 1, 512)
        if not decoded:
            break
        (record,) = decoded
        content = record.payload
        if record.type in v2.COMPRESSED:
            content = inflater.inflate(content)
        found.append((record.type, record.version, content))
    return found


@given(RECORDS, SEALERS)
def test_what_was_encoded_is_decoded(
    records: list[tuple[v2.Type, int, bytes]], sealer: DigestSealer | KeySealer
) -> None:
    encoder = Encoder(sealer, START)
    assert _decoded([encoder.encode(*record) for record in records], sealer) == records


@pytest.mark.parametrize("seed", range(6))
def test_large_records_are_decoded_whole_wherever_their_blocks_end(seed: int) -> None:
    random = Random(seed)
    sizes = [random.randrange(1, limit) for limit in (3_000, 1 << 17)]
    sizes.append(random.randrange(1 << 20, 3 << 20))
    contents = [random.choice((b"y" * size, os.urandom(size))) for size in sizes * 2]
    records = [(v2.Type.TRANSACTION, 1, content) for content in contents]
    encoder = Encoder(DigestSealer(), START)
    stored = [encoder.encode(*record) for record in records]
    assert _decoded(stored, DigestSealer()) == records


def test_record_of_more_than_a_mebibyte_that_ends_inside_its_last_block_is_decoded() -> None:
    contents = [b"y" * size for size in (200, 1_100_000, 5)]
    records = [(v2.Type.TRANSACTION, 1, content) for content in contents]
    encoder = Encoder(DigestSealer(), START)
    stored = [encoder.encode(*record) for record in records]
    assert _decoded(stored, DigestSealer()) == records


def test_largest_record_compresses_no_further_than_a_reader_believes() -> None:
    encoder, inflater = Encoder(DigestSealer(), START), Inflater()
    for byte in (b"\x00", b"y", b"y"):
        content = byte * (16 << 20)
        data = encoder.encode(v2.Type.TRANSACTION, 1, content)
        payload = data[v2.HEAD_BYTES + v2.BODY_BYTES : -v2.FOOT_BYTES - v2.SEAL_BYTES]
        assert inflater.inflate(payload) == content


@given(RECORDS, SEALERS, st.data())
def test_removed_moved_doubled_or_changed_records_end_what_is_decoded(
    records: list[tuple[v2.Type, int, bytes]],
    sealer: DigestSealer | KeySealer,
    data: st.DataObject,
) -> None:
    encoder = Encoder(sealer, START)
    stored = [encoder.encode(*record) for record in records]
    at = data.draw(st.integers(0, len(stored) - 1))
    what = data.draw(st.sampled_from(["removed", "moved", "doubled", "changed"]))
    altered = list(stored)
    if what == "removed":
        del altered[at]
    elif what == "moved":
        altered.insert(data.draw(st.integers(0, len(stored) - 1)), altered.pop(at))
    elif what == "doubled":
        altered.insert(at, altered[at])
    else:
        changed = bytearray(altered[at])
        place = data.draw(st.integers(0, len(changed) * 8 - 1))
        changed[place // 8] ^= 1 << place % 8
        altered[at] = bytes(changed)
    same = next((n for n, (a, b) in enumerate(zip(altered, stored, strict=False)) if a != b), None)
    kept = min(len(altered), len(stored)) if same is None else same
    assert _decoded(altered, sealer) == records[:kept]


def test_claims_of_a_bomb_take_no_memory() -> None:
    encoder = Encoder(DigestSealer(), START)
    encoder.encode(v2.Type.CHUNK, 0, b"x")
    with pytest.raises(v2.Malformed, match="impossible length"):
        Inflater().inflate(b"\xff\xff\xff\xff" + os.urandom(20))


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_noise_is_never_inflated_by_a_crash(noise: bytes) -> None:
    with contextlib.suppress(v2.Malformed):
        Inflater().inflate(noise)
