"""Numbers of the log's objects: few ranges, however many objects there are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Numbers(Sequence[int]):
    """Numbers in ascending order, each once. Memory: one range for those without a gap."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        """The numbers in any of the ranges, each with its first and its last one."""
        joined: list[list[int]] = []
        for first, last in sorted(ranges):
            if joined and first <= joined[-1][1] + 1:
                joined[-1][1] = max(joined[-1][1], last)
            elif first <= last:
                joined.append([first, last])
        self._ranges = [range(first, last + 1) for first, last in joined]
        self._starts = [0, *accumulate(map(len, self._ranges))]

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self._ranges)

    def __reversed__(self) -> Iterator[int]:
        return chain.from_iterable(map(reversed, reversed(self._ranges)))

    @overload
    def __getitem__(self, at: int) -> int: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[int]: ...

    def __getitem__(self, at: int | slice) -> int | Sequence[int]:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            if step != 1:
                raise ValueError("only slices without a step")
            cut = [
                numbers[max(0, start - begin) : max(0, stop - begin)]
                for numbers, begin in zip(self._ranges, self._starts, strict=False)
            ]
            return Numbers((part[0], part[-1]) for part in cut if part)
        wanted = at + len(self) if at < 0 else at
        if not 0 <= wanted < len(self):
            raise IndexError(at)
        index = bisect_right(self._starts, wanted) - 1
        return self._ranges[index][wanted - self._starts[index]]
