"""The places a backup can live in, each known by the scheme of its URL."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from cln_backup.errors import BadUrl

if TYPE_CHECKING:
    from cln_backup.backends.base import Backend
    from cln_backup.change import Change

_SCHEMES = {
    "dir": ("cln_backup.backends.dir", "DirBackend"),
    "file": ("cln_backup.backends.file", "FileBackend"),
    "socket": ("cln_backup.backends.socket", "SocketBackend"),
}


def backend_class(url: str) -> type[Backend]:
    """The class that serves a URL's scheme, imported only now.

    Raises:
        BadUrl: no backend has this scheme.
    """
    scheme, colon, _ = url.partition(":")
    if not colon or scheme not in _SCHEMES:
        known = ", ".join(f"{name}:" for name in _SCHEMES)
        raise BadUrl(f"No backend serves {redacted(url)!r}. Known schemes: {known}")
    module, name = _SCHEMES[scheme]
    found: type[Backend] = getattr(import_module(module), name)
    return found


def url_of(place: str) -> str:
    """The URL of a place that is named by a URL, or by a path alone.

    A path alone is that of a `file:` backup where a file stands, otherwise of a `dir:` one.
    """
    scheme, colon, _ = place.partition(":")
    if colon and scheme.isalnum():
        return place
    path = os.path.abspath(os.path.expanduser(place))
    return f"file://{path}" if os.path.isfile(path) else f"dir://{path}"


def open_backend(url: str, *, writable: bool = False) -> Backend:
    """Opens the backup at a URL; `Backend.open` says what that means and what it raises."""
    return backend_class(url).open(url, writable=writable)


def create_backend(url: str, base: Change | None) -> None:
    """Makes a new backup at a URL; `Backend.create` says what is durable and what it raises."""
    backend_class(url).create(url, base)


def redacted(url: str) -> str:
    """The URL without what may be secret in it: a user's password, and any query's values.

    `dir:` and `socket:` URLs have no place for secrets, only for the paths of files that hold some,
    so they are shown whole, as they can be used again.
    """
    if url.startswith("file:///") and "?" not in url:
        return url  # a path only, and any other sign may be part of it
    if url.startswith("dir:") or (url.startswith("socket:") and "@" not in url):
        return url
    location, question_mark, query = url.partition("?")
    before, at, after = location.rpartition("@")
    if at:
        scheme, slashes, user = before.rpartition("//")
        location = f"{scheme}{slashes}{user.partition(':')[0]}@{after}"
    if question_mark:
        names = [pair.partition("=")[0] for pair in query.split("&")]
        location += "?" + "&".join(f"{name}=…" for name in names)
    return location
