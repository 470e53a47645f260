"""The list of nodes: the backups that a server serves and their credentials, one node per line.

# name   backup                        SHA-256 of the token, as `backup-cli token` shows it
alice    file:///srv/backup/alice.bkp  5f1d…
"""

from __future__ import annotations

import logging
import os
import re
import threading
from typing import TYPE_CHECKING

from cln_backup.backends import place_at, redacted
from cln_backup.model.errors import BackupError, BadSettings, BadUrl, NotFound
from cln_backup.server.served import Served
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from collections.abc import Iterable

_log = logging.getLogger("cln_backup.server")

_renewing = threading.Lock()
_MAX_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")


def read_nodes(path: str) -> dict[str, Served]:
    """Reads the nodes in a file, without opening their backups.

    Raises:
        BadSettings: a line is not valid; the message names it.
        BadUrl: this server cannot serve a backup.
    """
    if fsio.kind_at(path, op="read list of nodes") is None:
        raise BadSettings(f"The list of nodes {path} does not exist.")
    fd = fsio.open_existing(path, writable=False, op="read list of nodes")
    try:
        content = fsio.read_at(fd, _MAX_BYTES, 0, op="read list of nodes")
    finally:
        os.close(fd)
    nodes: dict[str, Served] = {}
    urls: set[str] = set()
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        where = f"{path}, line {number}"
        if len(fields) != 3:
            raise BadSettings(f"{where}: expected a name, a backup's URL and a token's hash.")
        name, url, token_hash = fields
        if _NAME.fullmatch(name) is None:
            raise BadSettings(f"{where}: a name must have 1 to 64 letters, digits, dots or dashes.")
        if _HASH.fullmatch(token_hash) is None:
            raise BadSettings(
                f"{where}: the last field must be the hash that `backup-cli token` prints, 64 "
                "hexadecimal digits; never the token itself."
            )
        if name in nodes or url in urls:
            raise BadSettings(f"{where}: duplicate name or backup.")
        nodes[name] = Served(name, of_this_machine(url), token_hash)
        urls.add(url)
    if not nodes:
        raise BadSettings(f"The list of nodes {path} is empty.")
    return nodes


def of_this_machine(url: str) -> str:
    """The URL of a backup that can be served. Raises `BadUrl` if it is on another server."""
    if place_at(url).storage_dir is None:
        raise BadUrl(
            f"Cannot serve {redacted(url)}: a server serves file: and dir: backups of its own "
            "machine. To listen there, name the backup first: backup-cli server dir:///the/backup "
            "HOST:PORT"
        )
    return url


def open_nodes(nodes: Iterable[Served]) -> None:
    """Opens backups for writing. If one cannot be opened, retries when its node connects."""
    for node in nodes:
        try:
            node.open()
        except NotFound:
            say_not_found(node)
        except BackupError as error:
            _log.error("%s: %s", node.name, error)


def say_not_found(node: Served) -> None:
    """Warns that there is no backup yet."""
    _log.warning(
        "There is no backup at %s yet. If there was one, check that its disk is mounted; a node's "
        "first `backup-cli init` makes it.",
        redacted(node.url),
    )


def renew(nodes: dict[str, Served], path: str) -> None:
    """Reloads the list into `nodes`; a node whose line is unchanged continues undisturbed.

    The connections of a node whose line was changed or removed are closed. A list that is not
    valid changes nothing. Raises nothing.
    """
    with _renewing:
        try:
            listed = read_nodes(path)
        except BackupError as error:
            _log.error("Cannot reload the list of nodes; the old one stays in use: %s", error)
            return
        changed = [name for name, node in nodes.items() if not _is_same(node, listed.get(name))]
        # All old ones first: a backup may have a new name.
        for name in changed:
            nodes[name].retire()
        for name in changed:
            if name not in listed:
                del nodes[name]
            elif listed[name].url == nodes[name].url:  # another token
                listed[name].proof = nodes[name].proof
        new = [node for name, node in listed.items() if name not in nodes or name in changed]
        nodes.update({node.name: node for node in new})
        open_nodes(new)
        _log.info("Read %s: %d nodes, of which %d are new or changed", path, len(nodes), len(new))


def _is_same(node: Served, listed: Served | None) -> bool:
    return listed is not None and (node.url, node.token_hash) == (listed.url, listed.token_hash)
