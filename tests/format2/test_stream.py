"""Properties of the records of one file."""

from __future__ import annotations

import contextlib
import os

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
        record = decoder.decode(data, v2.Position(1, 512, decoder.seal))
        if record is None:
            break
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
    with pytest.raises(v2.Malformed, match="claims"):
        Inflater().inflate(b"\xff\xff\xff\xff" + os.urandom(20))


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_noise_is_never_inflated_by_a_crash(noise: bytes) -> None:
    with contextlib.suppress(v2.Malformed):
        Inflater().inflate(noise)
