"""The path in a URL of files on this machine."""

from __future__ import annotations

from typing import Final

from cln_backup.backends import redacted
from cln_backup.model.errors import BadUrl

_CUTS_OFF: Final = "?#\r\n\t\x00"


def absolute_path(url: str, scheme: str, *, options: bool = False) -> tuple[str, str]:
    """The path, taken literally (nothing in it is unquoted), and what follows a question mark.

    Args:
        url: such as `file:///path` or `file:/path`.
        scheme: `file` or `dir`.
        options: whether a question mark begins options; otherwise it is refused.

    Raises:
        BadUrl: the path is not absolute, or other programs would read it differently.
    """
    path, query = url.removeprefix(f"{scheme}:").removeprefix("//"), ""
    if options:
        path, _, query = path.partition("?")
    if not path.startswith("/"):
        raise BadUrl(
            f"{redacted(url)!r} names no absolute path. Write {scheme}:///the/path, with three "
            "slashes."
        )
    if any(character in path for character in _CUTS_OFF):
        raise BadUrl(
            f"{redacted(url)!r} has a character in its path (?, #, tab, line end) at which other "
            "programs cut a URL off."
        )
    return path, query
