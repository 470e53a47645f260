"""How long a server may be waited for: as long as its URL says, but less while the node starts."""

from __future__ import annotations

import time


class Patience:
    """Bounds each wait for a server until the node is up.

    While the node starts, its other plugins give up some 120 s after they were asked, and take it
    down. Once it is up, nothing ends a wait but the URL's own deadline.
    """

    def __init__(
        self, start_s: float = 120.0, together_s: float = 80.0, least_s: float = 5.0
    ) -> None:
        """Begins now, when the node starts.

        Args:
            start_s: after this time the node counts as up, whatever was heard of it.
            together_s: what all waits of the start may take, counted from now.
            least_s: what a wait may take all the same.
        """
        self._began_s = time.monotonic()
        self._start_s = start_s
        self._together_s = together_s
        self._least_s = least_s
        self._up = False

    def node_is_up(self) -> None:
        """From now on waits are not bounded: no other plugin gives up any more."""
        self._up = True

    def bound_s(self) -> float | None:
        """How long a wait that begins now may take; `None` for as long as the URL says."""
        age_s = time.monotonic() - self._began_s
        if self._up or age_s > self._start_s:
            return None
        return max(self._least_s, self._together_s - age_s)
