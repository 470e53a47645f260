"""The places a backup can live in, each known by the scheme of its URL."""

from __future__ import annotations

import os
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import TYPE_CHECKING

from cln_backup.model.errors import BadUrl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from cln_backup.backends.contract import Backend
    from cln_backup.model.change import Change

SCHEMES = {
    "dir": ("cln_backup.backends.dir.backend", "DirBackend"),
    "file": ("cln_backup.backends.file.backend", "FileBackend"),
    "socket": ("cln_backup.backends.socket.backend", "SocketBackend"),
}

_HARMLESS = frozenset(
    (
        *("key-file", "hsm-secret", "passphrase-file", "keep", "keep-days"),
        *("proxy", "node", "token-file", "tls", "fingerprint", "pin", "ca", "deadline", "protocol"),
        "insecure",
    )
)
"""Options of our own URLs: paths of files that hold secrets, never the secrets themselves."""


def backend_class(url: str) -> type[Backend]:
    """The class that serves a URL's scheme, imported only now.

    Raises:
        BadUrl: no backend has this scheme.
    """
    scheme, colon, _ = url.partition(":")
    if not colon or scheme not in SCHEMES:
        known = ", ".join(f"{name}:" for name in SCHEMES)
        raise BadUrl(f"No backend serves {redacted(url)!r}. Known schemes: {known}")
    module, name = SCHEMES[scheme]
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


_accepting: ContextVar[bool] = ContextVar("accepting", default=False)


@contextmanager
def accepting_incomplete_copies() -> Iterator[None]:
    """Inside, a reader takes what is there of a backup whose end is missing, and notes it."""
    token = _accepting.set(True)
    try:
        yield
    finally:
        _accepting.reset(token)


def incomplete_copies_are_accepted() -> bool:
    """Whether this is called within `accepting_incomplete_copies`."""
    return _accepting.get()


def create_backend(url: str, base: Change | None) -> None:
    """Makes a new backup at a URL; `Backend.create` says what is durable and what it raises."""
    require_outside_backups(url)
    backend_class(url).create(url, base)


def creating_backend(url: str, base: Change | None) -> AbstractContextManager[None]:
    """Makes a new backup that stays if the block ends well; see `Backend.creating`."""
    return backend_class(url).creating(url, base)


def require_outside_backups(url: str) -> None:
    """Makes sure that a new backup is made in no other one. Raises `AlreadyExists`, `BadUrl`."""
    path = backend_class(url).path_at(url)
    if path is not None:
        from cln_backup.backends.places import require_outside

        require_outside(os.path.dirname(path))


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
