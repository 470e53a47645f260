"""The path in a URL of files on this machine."""

from __future__ import annotations

from typing import Final

from cln_backup.backends import redacted
from cln_backup.model.errors import BadUrl

KEY_SOURCES: Final = ("key-file", "hsm-secret", "passphrase-file")
"""Names of the options with the path of a secret that unlocks the backup. Paths, never secrets:
`backup.lock` and command lines are not the place for secrets."""

_CUTS_OFF: Final = "?#\r\n\t\x00"


def absolute_path(url: str, scheme: str, *, options: bool = False) -> tuple[str, str]:
    """The path, taken literally (not unquoted), and the text after a question mark.

    Args:
        url: such as `file:///path` or `file:/path`.
        scheme: `file` or `dir`.
        options: whether a question mark starts options; otherwise it is refused.

    Raises:
        BadUrl: the path is not absolute, or other programs would read it differently.
    """
    path, query = url.removeprefix(f"{scheme}:").removeprefix("//"), ""
    if options:
        path, _, query = path.partition("?")
    if not path.startswith("/"):
        raise BadUrl(
            f"The path in {redacted(url)!r} is not absolute. Write {scheme}:///the/path, with "
            "three slashes."
        )
    if any(character in path for character in _CUTS_OFF):
        raise BadUrl(
            f"The path in {redacted(url)!r} contains a character (?, #, tab, line end) that other "
            "programs do not accept in a URL."
        )
    return path, query
