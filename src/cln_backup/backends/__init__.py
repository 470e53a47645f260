"""The places a backup can live in, each known by the scheme of its URL."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from cln_backup.model.errors import BadUrl

if TYPE_CHECKING:
    from cln_backup.backends.contract import Place, Reader, Writer
    from cln_backup.model.change import Change

SCHEMES = {
    "dir": ("cln_backup.backends.dir.place", "DirPlace"),
    "file": ("cln_backup.backends.file.place", "FilePlace"),
    "socket": ("cln_backup.backends.socket.place", "SocketPlace"),
}

_HARMLESS = frozenset(
    (
        *("key-file", "hsm-secret", "passphrase-file", "keep", "keep-days"),
        *("proxy", "node", "token-file", "tls", "fingerprint", "pin", "ca", "deadline", "protocol"),
        "insecure",
    )
)
"""Options of our own URLs: paths of files that hold secrets, never the secrets themselves."""


def place_at(url: str) -> Place:
    """The place that a URL names; nothing is looked at yet.

    Raises:
        BadUrl: no backend has this scheme, or the URL cannot be understood.
    """
    return place_class(url)(url)


def place_class(url: str) -> type[Place]:
    """What serves a URL's scheme, imported only now. Raises `BadUrl`, as `place_at`."""
    scheme, colon, _ = url.partition(":")
    if not colon or scheme not in SCHEMES:
        known = ", ".join(f"{name}:" for name in SCHEMES)
        raise BadUrl(f"No backend serves {redacted(url)!r}. Known schemes: {known}")
    module, name = SCHEMES[scheme]
    found: type[Place] = getattr(import_module(module), name)
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


def open_reader(url: str) -> Reader:
    """Opens the backup at a URL to read, with nothing but what the URL says of it.

    `Place.open_reader` says what it raises.
    """
    return place_at(url).open_reader()


def open_writer(url: str) -> Writer:
    """Opens the backup at a URL to write, with nothing but what the URL says of it.

    `Place.open_writer` says what it raises.
    """
    return place_at(url).open_writer()


def create_backend(url: str, base: Change | None) -> None:
    """Makes a new backup at a URL; `Place.creating` says what is durable and what it raises."""
    with place_at(url).creating(base):
        pass


def redacted(url: str) -> str:
    """The URL, of whatever scheme, without what may be secret in it.

    Left out are what is before an `@`, but for a name without a password, and the values of all
    options but those that our own URLs have, which hold no secrets.
    """
    location, question_mark, query = url.partition("?")
    if not location.startswith(("dir:/", "file:/")):  # there, any sign may be part of the path
        location = _without_password(location)
    if question_mark:
        location += "?" + "&".join(_shown(*pair.partition("=")) for pair in query.split("&"))
    return location


def _without_password(place: str) -> str:
    before, at, after = place.rpartition("@")
    if not at:
        return place
    scheme, slashes, user = before.rpartition("//")
    if not slashes and before.startswith(("socket:", "socks5:")):
        scheme, slashes, user = before.partition(":")
    return f"{scheme}{slashes}{user.partition(':')[0]}@{after}"


def _shown(name: str, equals: str, value: str) -> str:
    if not equals:
        return name
    return f"{name}={_without_password(value) if name in _HARMLESS else '…'}"
