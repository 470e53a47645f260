"""The digest of a history: what changes it, and what does not."""

from __future__ import annotations

from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from cln_backup.model.position import (
    EMPTY,
    UNKNOWN,
    Position,
    after_snapshot,
    after_statements,
)

DIGESTS = st.binary(min_size=32, max_size=32).filter(lambda digest: digest != UNKNOWN)
VERSIONS = st.integers(0, (1 << 64) - 1)


def test_the_vectors_of_the_document() -> None:
    """`docs/format.md` lists these, for authors of other programs."""
    one = after_statements(EMPTY, 1, b"UPDATE a\0UPDATE b")
    two = after_snapshot(one, 7, sha256(b"a database").digest())
    assert EMPTY.hex() == "a89b415f43b6df218dddddc4613ef875a5ef04f0452fc5630328c9a19f25285c"
    assert one.hex() == "b8770c4a32aee202fd11a8facb5988dafef64504c606240558ece9096678ed81"
    assert two.hex() == "1058469fe75085eaae8f6f55a7a76a88cc63bfe8dad38ceb434e8438347cf169"


@given(DIGESTS, VERSIONS, st.binary(max_size=64), DIGESTS, VERSIONS, st.binary(max_size=64))
def test_each_part_of_a_change_counts(
    digest: bytes, version: int, content: bytes, digest2: bytes, version2: int, content2: bytes
) -> None:
    """Two changes lead to one digest only when everything of them is the same."""
    same = (digest, version, content) == (digest2, version2, content2)
    found = after_statements(digest, version, content)
    assert (found == after_statements(digest2, version2, content2)) == same


@given(DIGESTS, VERSIONS, DIGESTS)
def test_a_snapshot_is_told_from_statements(digest: bytes, version: int, content: bytes) -> None:
    """Also where the statements are the digest of the snapshot."""
    assert after_snapshot(digest, version, content) != after_statements(digest, version, content)


@given(VERSIONS, st.binary(max_size=64), DIGESTS)
def test_nothing_known_follows_from_what_is_unknown(
    version: int, content: bytes, digest: bytes
) -> None:
    """A release that did not know the digest may have written between."""
    assert after_statements(UNKNOWN, version, content) == UNKNOWN
    assert after_snapshot(UNKNOWN, version, digest) == UNKNOWN
    assert after_snapshot(digest, version, UNKNOWN) == UNKNOWN


def test_only_two_known_digests_prove_another_history() -> None:
    """And only at one version."""
    here = Position(5, 5, EMPTY)
    assert here.is_other_history(Position(5, 9, after_statements(EMPTY, 1, b"")))
    assert not here.is_other_history(Position(5, 9, EMPTY))
    assert not here.is_other_history(Position(5, 5, None))
    assert not here.is_other_history(Position(6, 5, after_statements(EMPTY, 1, b"")))
