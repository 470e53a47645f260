"""Numbers of objects: as a sorted list of them."""

from __future__ import annotations

from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from cln_backup.backends.objects.numbers import Numbers

_RANGES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=6)


@given(_RANGES, st.integers(-50, 50), st.integers(-50, 50))
def test_they_are_as_a_sorted_list(ranges: list[tuple[int, int]], start: int, stop: int) -> None:
    numbers = Numbers(ranges)
    expected = sorted({n for first, last in ranges for n in range(first, last + 1)})
    assert list(numbers) == expected
    assert list(reversed(numbers)) == expected[::-1]
    assert (len(numbers), bool(numbers)) == (len(expected), bool(expected))
    assert list(numbers[start:stop]) == expected[start:stop]
    assert [numbers[at] for at in range(-len(expected), len(expected))] == expected * 2
    assert bisect_left(numbers, stop) == bisect_left(expected, stop)
    assert (stop in numbers) == (stop in expected)


def test_millions_take_no_memory() -> None:
    numbers = Numbers([*((n, n + 255) for n in range(1, 10**9, 256)[:20_000]), (10**9, 10**9)])
    assert (len(numbers), numbers[-1]) == (20_000 * 256 + 1, 10**9)
    assert next(reversed(numbers)) == 10**9
    assert len(numbers._ranges) == 2
