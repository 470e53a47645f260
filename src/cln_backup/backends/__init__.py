"""The places for backups, each known by the scheme of its URL."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from cln_backup.model.errors import BadUrl

if TYPE_CHECKING:
    from cln_backup.backends.contract import Reader, Writer
    from cln_backup.backends.place import Place
    from cln_backup.model.change import Change

SCHEMES = {
    "dir": ("cln_backup.backends.dir.place", "DirPlace"),
    "file": ("cln_backup.backends.file.place", "FilePlace"),
    "postgresql": ("cln_backup.backends.postgres.place", "PostgresPlace"),
    "objects": ("cln_backup.backends.objects.local", "LocalObjectsPlace"),
    "s3": ("cln_backup.backends.objects.stores", "StorePlace"),
    "gs": ("cln_backup.backends.objects.stores", "StorePlace"),
    "az": ("cln_backup.backends.objects.stores", "StorePlace"),
    "socket": ("cln_backup.backends.socket.place", "socket_place"),
}

_HARMLESS = frozenset(
    (
        *("key-file", "hsm-secret", "passphrase-file", "keep", "keep-days"),
        *("proxy", "node", "token-file", "tls", "fingerprint", "pin", "ca", "deadline", "protocol"),
        *("unsafe", "host", "hostaddr", "port", "user", "service", "passfile", "sslmode"),
        *("target_session_attrs", "sslrootcert", "sslcert", "sslkey", "sslcrl", "channel_binding"),
        *("require_auth", "gssencmode", "krbsrvname"),
        *("insecure", "endpoint", "region", "credentials-file", "fencing", "account"),
    )
)
"""Options of this project's URLs: paths of files with secrets, never the secrets themselves."""


def place_at(url: str) -> Place:
    """The place that a URL names; nothing is opened yet.

    Raises:
        BadUrl: no backend has this scheme, or the URL cannot be understood.
    """
    scheme, colon, _ = url.partition(":")
    if not colon or scheme not in SCHEMES:
        known = ", ".join(f"{name}:" for name in SCHEMES)
        raise BadUrl(f"Unknown scheme in {redacted(url)!r}. The schemes are {known}")
    module, name = SCHEMES[scheme]
    place: Place = getattr(import_module(module), name)(url)
    return place


def url_of(place: str) -> str:
    """The URL of a place that is given as a URL, or as a path alone.

    A path alone means a `file:` backup if it is a file, otherwise a `dir:` backup.
    """
    scheme, colon, _ = place.partition(":")
    if colon and scheme.isalnum():
        return place
    path = os.path.abspath(os.path.expanduser(place))
    return f"file://{path}" if os.path.isfile(path) else f"dir://{path}"


def open_reader(url: str) -> Reader:
    """Opens the backup at a URL to read, with the options in the URL only.

    Raises as `Place.open_reader`.
    """
    return place_at(url).open_reader()


def open_writer(url: str) -> Writer:
    """Opens the backup at a URL to write, with the options in the URL only.

    Raises as `Place.open_writer`.
    """
    return place_at(url).open_writer()


def create_backend(url: str, base: Change | None) -> None:
    """Makes a new backup at a URL; see `Place.creating` for durability and errors."""
    with place_at(url).creating(base):
        pass


def redacted(url: str) -> str:
    """The URL, of any scheme, without anything that may be secret.

    Left out are the user information before an `@`, except a name without a password, and the
    values of all options except those of this project's own URLs, which contain no secrets.
    """
    location, question_mark, query = url.partition("?")
    if not location.startswith(("dir:/", "file:/")):  # there, any character may be in the path
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
