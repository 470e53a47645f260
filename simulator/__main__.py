"""`python -m simulator`."""

from __future__ import annotations

import sys

from simulator.node import Node
from simulator.options import parse
from simulator.supervisor import Supervisor


def main() -> int:
    """Run a node, or several one after the other; returns the exit code."""
    command = parse()
    if command.supervise:
        return Supervisor(command).run()
    return Node(command.settings).run()


if __name__ == "__main__":
    sys.exit(main())
