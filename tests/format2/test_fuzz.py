from __future__ import annotations

import pytest

from tests.format2 import fuzz
from tests.format2.small import KINDS
from tests.soak import SOAK


@pytest.mark.parametrize("seed", range(4 if SOAK else 2))
@pytest.mark.parametrize("kind", KINDS)
def test_reader_says_what_is_wrong_or_tells_what_was_stored(kind: str, seed: int) -> None:
    assert fuzz.run(kind, 600, seed) == 600
