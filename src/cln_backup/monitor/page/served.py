"""The page of a monitor: its figures, what happened to the nodes, and the server, as one."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

from cln_backup.model.errors import BadSettings, Interrupted
from cln_backup.monitor.chronicle import Chronicle
from cln_backup.monitor.figures import STORE_NAME, Figures
from cln_backup.wire.address import Address

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cln_backup.model.health import Finding
    from cln_backup.monitor.messages import PageAt
    from cln_backup.monitor.page.serving import Page
    from cln_backup.monitor.state import NodeState

_log = logging.getLogger(__name__)


class ServedPage:
    """Keeps the figures and serves the page. Trouble with it is logged, and never raised."""

    def __init__(self, title: str, directory: str, at: PageAt) -> None:
        """`directory`: where the figures are."""
        self._figures = Figures(os.path.join(directory, STORE_NAME))
        self._chronicle = Chronicle(self._figures)
        self._page: Page | None = None
        self._is_served = False
        try:
            from cln_backup.monitor.page.serving import Page

            self._page = Page(self._chronicle, title, Address(at.host, at.port), at.names)
        except BadSettings as error:
            _log.error("The page is not served: %s", error)

    def take(
        self,
        nodes: Mapping[str, NodeState],
        findings: Mapping[str, Sequence[Finding]],
        now: float,
    ) -> None:
        """Takes the state of all nodes, and what is wrong with them, at a time.

        The first call opens the address: before that there is nothing to show.
        """
        with contextlib.suppress(Interrupted):  # of a line for a log that is no longer there
            self._chronicle.take(nodes, findings, now)
        if self._page is not None and not self._is_served:
            self._page.start()
            self._is_served = True

    def close(self) -> None:
        """Closes the address and the file."""
        if self._page is not None:
            self._page.stop()
        self._figures.close()
