"""What the URL of a `dir:` backup says: the directory, where the key lies, what to keep."""

from __future__ import annotations

import os
from typing import NamedTuple
from urllib.parse import unquote

from cln_backup.backends.local_url import absolute_path
from cln_backup.model.errors import BadUrl

KEY_SOURCES = ("key-file", "hsm-secret", "passphrase-file")
"""Names of the options that say where a secret lies which unlocks the backup. Paths, never secrets:
what stands in `backup.lock` or on a command line is no place for them."""


class Place(NamedTuple):
    """A URL, taken apart.

    Attributes:
        path: of the directory.
        key_source: one of `KEY_SOURCES`, and the file's path; `None` without encryption.
        keep: how many generations of the history to keep besides the newest one.
        keep_days: how long to keep a generation at least after the next one took its place.
    """

    path: str
    key_source: tuple[str, str] | None
    keep: int
    keep_days: int


def place_of(url: str) -> Place:
    """Takes a URL apart: `dir:///path?key-file=/path/of/key&keep=1&keep-days=7`.

    The path is taken as it stands, nothing in it is unquoted; in the options, `%26` is `&`.

    Raises:
        BadUrl: it names no absolute path, or an option that there is not.
    """
    path, query = absolute_path(url, "dir", options=True)
    source: tuple[str, str] | None = None
    numbers = {"keep": 0, "keep-days": 0}
    for pair in filter(None, query.split("&")):
        name, _, quoted = pair.partition("=")
        value = unquote(quoted)
        if name in KEY_SOURCES and source is None and os.path.isabs(value):
            source = (name, value)
        elif name in numbers and value.isdecimal() and len(value) < 7:
            numbers[name] = int(value)
        else:
            raise BadUrl(
                f"The option {name!r} of the URL cannot be understood. There are keep=NUMBER, "
                "keep-days=NUMBER, and one of key-file, hsm-secret, passphrase-file with an "
                "absolute path."
            )
    path = path.rstrip("/") or "/"
    return Place(path, source, numbers["keep"], numbers["keep-days"])
