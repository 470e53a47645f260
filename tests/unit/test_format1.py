"""Format 1 byte for byte, against what the community's plugin reads and writes."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cln_backup.backends import create_backend, open_writer
from cln_backup.formats import v1
from cln_backup.model.change import Change
from cln_backup.model.errors import BadChange
from tests.histories import (
    image,
    payment,
    payments,
    rider,
    started_node,
    told,
    told_by,
    transaction,
)
from tests.seed_file import SeedFile, packed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_U32 = st.integers(0, 2**32 - 1)
_U64 = st.integers(0, 2**64 - 1)
# Text as from the node: any characters, and invalid UTF-8 as lone surrogates.
_STATEMENT = st.binary(min_size=1, max_size=80).filter(lambda raw: 0 not in raw)


def test_header_byte_table() -> None:
    header = v1.Header(0x01020304, 0x05060708090A0B0C, 0x0D0E0F10, 0x1112131415161718, 0x191A)
    packed_header = v1.pack_header(header)
    assert packed_header == bytes.fromhex(
        "00000001"  # the file's version
        "01020304"  # data version
        "05060708090a0b0c"  # where the next entry goes
        "0d0e0f10"  # the version before
        "1112131415161718"  # where the last entry begins
        "000000000000191a"  # number of changes
    )
    assert len(packed_header) == 36
    assert v1.HEADER_BYTES == 512


def test_entry_byte_table() -> None:
    assert v1.pack_entry_head(0x01020304, 0x05060708, v1.SNAPSHOT) == bytes.fromhex(
        "01020304"  # length of the payload
        "05060708"  # data version
        "02"  # a snapshot
    )
    assert v1.ENTRY_BYTES == 9
    assert (v1.TRANSACTION, v1.SNAPSHOT) == (1, 2)
    assert v1.pack_transaction(["a", "ä"]) == b"a\x00\xc3\xa4"


@given(_U32, _U64, _U32, _U64, _U64)
def test_every_header_comes_back(
    version: int, offset: int, prev_version: int, prev_offset: int, count: int
) -> None:
    header = v1.Header(version, offset, prev_version, prev_offset, count)
    data = v1.pack_header(header)
    assert v1.unpack_header(data.ljust(512, b"\x00")) == (1, header)
    assert struct.unpack(">IIQIQQ", data) == (1, *header)


@given(_U32, _U32, st.sampled_from([v1.TRANSACTION, v1.SNAPSHOT]))
def test_every_entry_head_comes_back(length: int, version: int, entry_type: int) -> None:
    data = v1.pack_entry_head(length, version, entry_type)
    assert v1.unpack_entry_head(data) == (length, version, entry_type)


@given(st.lists(_STATEMENT, min_size=1))
def test_every_transaction_comes_back_byte_for_byte(raw: list[bytes]) -> None:
    texts = [statement.decode("utf-8", "surrogateescape") for statement in raw]
    payload = v1.pack_transaction(texts)
    assert payload == b"\x00".join(raw)
    assert v1.unpack_transaction(payload) == tuple(texts)


@pytest.mark.parametrize(
    "statements",
    [[], [""], ["a", ""], ["", "a"], ["a\x00b"], ["\x00"], ["a", "\ud800"], ["\udfff"]],
    ids=repr,
)
def test_statement_that_could_not_be_read_back_is_refused(statements: list[str]) -> None:
    with pytest.raises(BadChange):
        v1.pack_transaction(statements)


def test_file_is_what_the_seed_writes_to_the_last_byte(tmp_path: Path) -> None:
    ours, seeds = tmp_path / "ours", tmp_path / "seeds"
    base = Change(2, image("and so on" * 700), None)
    history = [*payments(3, 6), rider(5), rider(5, "PRAGMA foreign_keys = ON;"), payment(6, "ä")]
    seed = SeedFile.create(seeds)
    create_backend(f"file://{ours}", None)
    assert ours.read_bytes() == seeds.read_bytes()
    with open_writer(f"file://{ours}") as backend:
        for change in [base, *history]:
            backend.add_change(change)
            seed.append(change)
            assert ours.read_bytes() == seeds.read_bytes()
            assert backend.version == seed.version
            assert backend.standing.prev_version == seed.prev_version
            assert backend.standing.version_count == seed.count


def test_backup_made_with_a_snapshot_is_what_the_seed_writes(tmp_path: Path) -> None:
    base = Change(17, image("all bytes" * 400), None)
    create_backend(f"file://{tmp_path}/ours", base)
    SeedFile.create(tmp_path / "seeds").append(base)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "seeds").read_bytes()


def test_rewind_leaves_the_header_that_the_seed_has_in_memory(tmp_path: Path) -> None:
    ours, seeds = tmp_path / "ours", tmp_path / "seeds"
    seed = SeedFile.create(seeds)
    create_backend(f"file://{ours}", None)
    with open_writer(f"file://{ours}") as backend:
        for change in started_node():
            backend.add_change(change)
            seed.append(change)
        backend.rewind()
        assert seed.rewind()
        # The seed's file still holds the dropped change and says nothing of the rewind; ours is
        # what the seed's would be, had it written down what it knows. The count stays as it was
        # in the seed's memory; ours is one less, and no reader takes the count for more than a
        # hint.
        expected = bytearray(seeds.read_bytes()[: seed.next_offset])
        expected[:512] = seed.header()
        expected[28:36] = struct.pack(">Q", seed.count - 1)
        assert ours.read_bytes() == bytes(expected)
        replacement = transaction(3, "DELETE FROM peers")
        backend.add_change(replacement)
        assert ours.read_bytes()[512:] == bytes(expected)[512:] + packed(replacement)


@given(st.lists(_STATEMENT, min_size=1, max_size=5), st.data())
def test_invalid_utf8_is_stored_byte_for_byte(
    memory_path: Path, raw: list[bytes], data: st.DataObject
) -> None:
    path = memory_path / f"backup-{data.draw(st.uuids())}"
    texts = [b"S" + statement for statement in raw]
    change = transaction(1, *(text.decode("utf-8", "surrogateescape") for text in texts))
    create_backend(f"file://{path}", None)
    with open_writer(f"file://{path}") as backend:
        backend.add_change(change)
    assert told_by(f"file://{path}") == told([change])
    assert b"\x00".join(texts) in path.read_bytes()
    path.unlink()


class _TooLarge:
    """Says that it is one byte larger than an entry may be; must not be read."""

    size_bytes = 2**32

    def chunks(self) -> Iterator[bytes]:
        raise AssertionError("read although it cannot be stored")


def test_snapshot_of_4_gib_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "backup"
    with pytest.raises(BadChange, match="4 GiB"):
        create_backend(f"file://{path}", Change(1, _TooLarge(), None))
    assert list(tmp_path.iterdir()) == []
    create_backend(f"file://{path}", None)
    before = path.read_bytes()
    with open_writer(f"file://{path}") as backend:
        with pytest.raises(BadChange, match="4 GiB"):
            backend.add_change(Change(1, _TooLarge(), None))
        assert path.read_bytes() == before


def test_writer_goes_on_after_a_snapshot_of_4_gib_was_refused(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/backup"
    create_backend(url, None)
    with open_writer(url) as backend:
        with pytest.raises(BadChange, match="4 GiB"):
            backend.add_change(Change(1, _TooLarge(), None))
        backend.add_change(payment(1))
    assert told_by(url) == told([payment(1)])


def test_entry_of_the_largest_length_is_packed_and_one_more_is_not() -> None:
    assert v1.pack_entry_head(2**32 - 1, 1, v1.TRANSACTION)[:4] == b"\xff" * 4
    with pytest.raises(BadChange, match="4 GiB"):
        v1.pack_entry_head(2**32, 1, v1.TRANSACTION)


@pytest.mark.parametrize("version", [-1, 2**32])
def test_version_that_the_format_cannot_hold_is_refused(version: int) -> None:
    with pytest.raises(BadChange, match="data version"):
        v1.pack_entry_head(1, version, v1.TRANSACTION)
