"""The list of nodes: the backups that a server serves and their credentials, one node per line.

# name   backup                        SHA-256 of the token, as `backup-cli token` shows it
alice    file:///srv/backup/alice.bkp  5f1d…
bob      objects:///srv/backup/bob     88ab…  quota=20G retain=30
"""

from __future__ import annotations

import logging
import os
import re
import threading
from typing import TYPE_CHECKING

from cln_backup.backends import place_at, redacted
from cln_backup.model.errors import BackupError, BadSettings, BadUrl, NotFound
from cln_backup.server.sealed import Sealed
from cln_backup.server.served import Served
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cln_backup.server.node import Node

_log = logging.getLogger("cln_backup.server")

_renewing = threading.Lock()
_MAX_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")
_QUOTA = re.compile(r"quota=([1-9][0-9]{0,14})([KMGT]?)")
_RETAIN = re.compile(r"retain=([1-9][0-9]{0,4})")
_SHIFTS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def read_nodes(path: str) -> dict[str, Node]:
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
    nodes: dict[str, Node] = {}
    urls: set[str] = set()
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        where = f"{path}, line {number}"
        if len(fields) < 3:
            raise BadSettings(f"{where}: expected a name, a backup's URL and a token's hash.")
        name, url, token_hash, *limits = fields
        if _NAME.fullmatch(name) is None:
            raise BadSettings(f"{where}: a name must have 1 to 64 letters, digits, dots or dashes.")
        if _HASH.fullmatch(token_hash) is None:
            raise BadSettings(
                f"{where}: the last field must be the hash that `backup-cli token` prints, 64 "
                "hexadecimal digits; never the token itself."
            )
        if name in nodes or url in urls:
            raise BadSettings(f"{where}: duplicate name or backup.")
        try:
            nodes[name] = node_of(name, url, token_hash, limits)
        except BadSettings as error:
            raise BadSettings(f"{where}: {error}") from None
        urls.add(url)
    if not nodes:
        raise BadSettings(f"The list of nodes {path} is empty.")
    return nodes


def node_of(
    name: str, url: str, token_hash: str | None, limits: Sequence[str] = ()
) -> Served | Sealed:
    """The node with a backup on this machine; nothing is opened yet.

    `limits` are for a sealed backup: `quota=SIZE` in bytes, or with K, M, G or T after it, and
    `retain=DAYS`, for which objects stay after the node removed them.

    Raises:
        BadSettings: a limit cannot be understood, or is not for this backup.
        BadUrl: this server cannot serve the backup.
    """
    place = place_at(of_this_machine(url))
    sealed_at = place.storage_dir if url.startswith("objects:") else None
    quota_bytes = retain_days = 0
    for limit in limits:
        quota, retain = _QUOTA.fullmatch(limit), _RETAIN.fullmatch(limit)
        if sealed_at is None or (quota is None and retain is None):
            raise BadSettings(
                f"{limit!r} cannot be understood. After the hash there may be quota=SIZE (such as "
                "20G) and retain=DAYS, only for a sealed backup (objects:)."
            )
        if quota is not None:
            quota_bytes = int(quota[1]) << _SHIFTS[quota[2]]
        elif retain is not None:
            retain_days = int(retain[1])
    if sealed_at is None:
        return Served(name, url, token_hash)
    return Sealed(name, url, token_hash, sealed_at, quota_bytes, retain_days)


def of_this_machine(url: str) -> str:
    """The URL of a backup that can be served. Raises `BadUrl` if it is on another server."""
    if place_at(url).storage_dir is None:
        raise BadUrl(
            f"Cannot serve {redacted(url)}: a server serves file: and dir: backups of its own "
            "machine. To listen there, name the backup first: backup-cli server dir:///the/backup "
            "HOST:PORT"
        )
    return url


def open_nodes(nodes: Iterable[Node]) -> None:
    """Opens backups for writing. If one cannot be opened, retries when its node connects."""
    for node in nodes:
        try:
            node.open()
        except NotFound:
            say_not_found(node)
        except BackupError as error:
            _log.error("%s: %s", node.name, error)


def say_not_found(node: Node) -> None:
    """Warns that there is no backup yet."""
    _log.warning(
        "There is no backup at %s yet. If there was one, check that its disk is mounted; a node's "
        "first `backup-cli init` makes it.",
        redacted(node.url),
    )


def renew(nodes: dict[str, Node], path: str) -> None:
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
            else:
                _keep_proof(nodes[name], listed[name])
        new = [node for name, node in listed.items() if name not in nodes or name in changed]
        nodes.update({node.name: node for node in new})
        open_nodes(new)
        _log.info("Read %s: %d nodes, of which %d are new or changed", path, len(nodes), len(new))


def _keep_proof(old: Node, new: Node) -> None:
    """Keeps what is known of a backup if only its token was changed."""
    if isinstance(old, Served) and isinstance(new, Served) and old.url == new.url:
        new.proof = old.proof


def _is_same(node: Node, listed: Node | None) -> bool:
    if listed is None or (node.url, node.token_hash) != (listed.url, listed.token_hash):
        return False
    if isinstance(node, Sealed) and isinstance(listed, Sealed):
        return node.limits == listed.limits
    return True
