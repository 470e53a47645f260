"""Which backups a server serves, and the credential of each: a file with one line a node.

# name   backup                        SHA-256 of the token, as `backup-cli token` shows it
alice    file:///srv/backup/alice.bkp  5f1d…
"""

from __future__ import annotations

import logging
import os
import re
import threading
from typing import TYPE_CHECKING

from cln_backup.backends import backend_class, redacted
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
    """The nodes in a file; none of their backups is opened.

    Raises:
        BadSettings: the message names the line that cannot be right.
        BadUrl: a backup that this server cannot serve.
    """
    if fsio.kind_at(path, op="read list of nodes") is None:
        raise BadSettings(f"There is no list of nodes at {path}.")
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
            raise BadSettings(f"{where}: write a name, a backup's URL and a token's hash.")
        name, url, token_hash = fields
        if _NAME.fullmatch(name) is None:
            raise BadSettings(f"{where}: a name has 1 to 64 letters, digits, dots or dashes.")
        if _HASH.fullmatch(token_hash) is None:
            raise BadSettings(
                f"{where}: the last field is the hash that `backup-cli token` shows, 64 "
                "hexadecimal digits; never the token itself."
            )
        if name in nodes or url in urls:
            raise BadSettings(f"{where}: this name or this backup is listed before.")
        nodes[name] = Served(name, of_this_machine(url), token_hash)
        urls.add(url)
    if not nodes:
        raise BadSettings(f"{path} lists no node.")
    return nodes


def of_this_machine(url: str) -> str:
    """The URL of a backup that can be served. Raises `BadUrl` where it is on a server itself."""
    if backend_class(url).remote:
        raise BadUrl(
            f"A server serves a file: or dir: backup of its own machine, not {redacted(url)}. To "
            "listen there, name the backup first: backup-cli server dir:///the/backup HOST:PORT"
        )
    return url


def open_nodes(nodes: Iterable[Served]) -> None:
    """Opens backups for writing. One that cannot be opened is tried again when its node comes."""
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
        "There is no backup at %s yet. If there was one, look whether its disk is mounted; a "
        "node's first `backup-cli init` makes it.",
        redacted(node.url),
    )


def renew(nodes: dict[str, Served], path: str) -> None:
    """Reads the list anew, into `nodes`; whose line is as before goes on undisturbed.

    The connections of a node whose line is gone or another are closed. A list that cannot be right
    changes nothing. Raises nothing.
    """
    with _renewing:
        try:
            listed = read_nodes(path)
        except BackupError as error:
            _log.error("The list of nodes stays as it was: %s", error)
            return
        changed = [name for name, node in nodes.items() if not _is_same(node, listed.get(name))]
        # All of the old ones first: a backup may have got another name.
        for name in changed:
            nodes[name].retire()
        for name in changed:
            if name not in listed:
                del nodes[name]
        new = [node for name, node in listed.items() if name not in nodes or name in changed]
        nodes.update({node.name: node for node in new})
        open_nodes(new)
        _log.info("Read %s: %d nodes, of which %d are new or changed", path, len(nodes), len(new))


def _is_same(node: Served, listed: Served | None) -> bool:
    return listed is not None and (node.url, node.token_hash) == (listed.url, listed.token_hash)
