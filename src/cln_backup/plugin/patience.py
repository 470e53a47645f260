"""How long to wait for a server: as long as its URL says, but less while the node starts."""

from __future__ import annotations

import time


class Patience:
    """Bounds each wait for a server until the node is up.

    While the node starts, its other plugins time out after about 120 s, and take it down. Once it
    is up, only the URL's own deadline ends a wait.
    """

    def __init__(
        self, start_s: float = 120.0, together_s: float = 80.0, least_s: float = 5.0
    ) -> None:
        """Starts the clock, at the start of the node.

        Args:
            start_s: after this time the node counts as up in any case.
            together_s: the limit for all waits of the start together, from now on.
            least_s: the minimum for a single wait.
        """
        self._began_s = time.monotonic()
        self._start_s = start_s
        self._together_s = together_s
        self._least_s = least_s
        self._up = False

    def node_is_up(self) -> None:
        """Ends the limit: other plugins no longer time out."""
        self._up = True

    def bound_s(self) -> float | None:
        """The limit for a wait that starts now; `None` for the deadline in the URL."""
        if self._up:
            return None
        age_s = time.monotonic() - self._began_s
        if age_s > self._start_s:
            self._up = True
            return None
        return max(self._least_s, self._together_s - age_s)
