"""Tokens: a node's credential for its server, and the hash that the server stores."""

from __future__ import annotations

import base64
import os
import re

from cln_backup.model.errors import BadSettings
from cln_backup.storage import fsio, interruption
from cln_backup.wire.credentials import token_hash

_MAX_BYTES = 512
_TOKEN = re.compile(r"[!-~]{16,256}")


def read_token(path: str) -> str:
    """The token in a file.

    Raises:
        BadSettings: the file cannot be read, or does not contain a token.
    """
    if fsio.kind_at(path, op="read token file") is None:
        raise BadSettings(f"The token file {path} does not exist. `backup-cli token` makes one.")
    fd = fsio.open_existing(path, writable=False, op="read token file")
    try:
        if os.fstat(fd).st_mode & 0o077:
            raise BadSettings(
                f"Users other than its owner can read the token file {path}: chmod 600 {path}"
            )
        content = fsio.read_at(fd, _MAX_BYTES, 0, op="read token file")
    finally:
        os.close(fd)
    token = content.decode("ascii", "replace").strip()
    if _TOKEN.fullmatch(token) is None:
        raise BadSettings(
            f"{path} does not contain a token: one line of 16 to 256 letters, digits and signs."
        )
    return token


def create_token(path: str) -> str:
    """Makes a token of 256 random bits in a new file; returns its hash.

    Durable when it returns. Raises `AlreadyExists`, `StorageError`.
    """
    token = base64.urlsafe_b64encode(os.urandom(32)).rstrip(b"=")
    with interruption.deferred():
        fsio.write_file(path, token + b"\n", op="write token file", new=True)
        interruption.finished()
    return token_hash(token.decode())
