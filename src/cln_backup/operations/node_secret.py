"""The `hsm_secret` for a restored node: which one it is, and whether it is the node's."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends.secrets import is_in_file, is_protected, node_id_of_secret, secret_in
from cln_backup.model.errors import Discontinuity

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.backends.secrets import Secret

THERE = "directory"
GIVEN = "given"
BACKUP = "backup"


class NodeSecret(NamedTuple):
    """The `hsm_secret` that the restored node will have.

    Attributes:
        source: where it comes from: `THERE`, `GIVEN` or `BACKUP`.
        content: of the file.
        node_id: of the node whose secret it is.
    """

    source: str
    content: bytes
    node_id: str

    def require(self, node_id: str | None) -> None:
        """Makes sure that it is the secret of this node. Raises `Discontinuity`."""
        if node_id not in (None, self.node_id):
            where = {THERE: "in the directory", GIVEN: "that was given", BACKUP: "in the backup"}
            raise Discontinuity(
                f"Wrong hsm_secret: the one {where[self.source]} is of the node {self.node_id}, "
                f"but the database in the backup is of the node {node_id}. Nothing was put in "
                "place. Find the hsm_secret, or the words, of this node."
            )


def choose(
    there: bytes | None,
    given: Secret | None,
    kept: bytes | None,
    ask: Callable[[], str],
) -> NodeSecret | None:
    """The secret for the node; `None` if there is none at hand.

    Args:
        there: the content of the directory's `hsm_secret`, which is never replaced.
        given: what the operator gave to unlock the backup, if that is the node's secret.
        kept: the `hsm_secret` in the backup.
        ask: asks for the passphrase of the secret.

    Raises:
        Locked: it is not an `hsm_secret`, or the passphrase is wrong.
        Discontinuity: there are two secrets, of two nodes.
    """
    file = None if given is None else given.hsm_secret
    for source, content in ((THERE, there), (GIVEN, file), (BACKUP, kept)):
        if content is None:
            continue
        if given is not None and file is not None and _is_known(given, content, file):
            secret = given.content
        else:
            protected = is_protected(content)
            secret = secret_in(content, "hsm_secret", ask() if protected else None)
        found = NodeSecret(source, content, node_id_of_secret(secret))
        if given is not None and file is not None:
            found.require(node_id_of_secret(given.content))
        return found
    return None


def _is_known(given: Secret, content: bytes, file: bytes) -> bool:
    return content == file or is_in_file(given.content, content)
