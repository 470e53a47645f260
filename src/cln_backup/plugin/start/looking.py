"""The process that compares, where no copy of the worker can: `python -m …start.looking`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup.backends import place_at
from cln_backup.plugin.start.comparing import looked
from cln_backup.plugin.start.messages import Look, Looked
from cln_backup.process.parent import serve

if TYPE_CHECKING:
    from cln_backup.process.channel import Message
    from cln_backup.process.parent import Parent


def _run(wanted: Look, parent: Parent[Message]) -> None:
    parent.say(Looked(looked(place_at(wanted.url), wanted)))


if __name__ == "__main__":
    serve(_run, Look)
