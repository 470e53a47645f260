"""The URL of a `dir:` backup: the directory, the key's path, the generations to keep."""

from __future__ import annotations

import os
from typing import NamedTuple

from cln_backup.backends.local_url import KEY_SOURCES, absolute_path
from cln_backup.model.errors import BadUrl


class DirUrl(NamedTuple):
    """A parsed URL.

    Attributes:
        path: of the directory.
        key_source: one of `KEY_SOURCES`, and the file's path; `None` without encryption.
        keep: how many generations of the history to keep besides the newest one.
        keep_days: the minimum number of days to keep a generation after it was replaced.
    """

    path: str
    key_source: tuple[str, str] | None
    keep: int
    keep_days: int


def parse_dir_url(url: str, scheme: str = "dir") -> DirUrl:
    """Parses a URL: `dir:///path?key-file=/path/of/key&keep=1&keep-days=7`.

    The path is taken literally; in the options, `%26` is `&`.

    Raises:
        BadUrl: the path is not absolute, or an option is unknown.
    """
    path, query = absolute_path(url, scheme, options=True)
    source: tuple[str, str] | None = None
    numbers = {"keep": 0, "keep-days": 0}
    for pair in filter(None, query.split("&")):
        name, _, quoted = pair.partition("=")
        value = _unquoted(quoted)
        if name in KEY_SOURCES and source is None and os.path.isabs(value):
            source = (name, value)
        elif name in numbers and value.isdecimal() and len(value) < 7:
            numbers[name] = int(value)
        else:
            raise BadUrl(
                f"Unknown or invalid option {name!r} in the URL. The options are keep=NUMBER, "
                "keep-days=NUMBER, and one of key-file, hsm-secret, passphrase-file with an "
                "absolute path."
            )
    path = path.rstrip("/") or "/"
    return DirUrl(path, source, numbers["keep"], numbers["keep-days"])


def _unquoted(value: str) -> str:
    if "%" not in value:
        return value
    from urllib.parse import unquote  # the node's start need not load it

    return unquote(value)
