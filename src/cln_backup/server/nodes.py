"""Which backups a server serves, and the credential of each: a file with one line a node.

# name   backup                        SHA-256 of the token, as `backup-cli token` shows it
alice    file:///srv/backup/alice.bkp  5f1d…
"""

from __future__ import annotations

import os
import re

from cln_backup import fsio
from cln_backup.errors import BadSettings
from cln_backup.server.served import Served

_MAX_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")


def read_nodes(path: str) -> dict[str, Served]:
    """The nodes in a file; none of their backups is opened.

    Raises:
        BadSettings: the message names the line that cannot be right.
    """
    if not os.path.isfile(path):
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
        nodes[name] = Served(name, url, token_hash)
        urls.add(url)
    if not nodes:
        raise BadSettings(f"{path} lists no node.")
    return nodes
