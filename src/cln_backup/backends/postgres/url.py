"""Parses `postgresql://HOST/DATABASE?node=NAME[&OPTION=VALUE…]`."""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple, NoReturn
from urllib.parse import unquote

from cln_backup.backends import redacted
from cln_backup.backends.local_url import KEY_SOURCES
from cln_backup.model.errors import BadUrl

SCHEME: Final = "postgresql"
FORM: Final = "postgresql://HOST[:PORT][,HOST…]/DATABASE?node=NAME[&OPTION=VALUE…]"

LIBPQ: Final[tuple[str, ...]] = (
    *("host", "hostaddr", "port", "user", "service", "passfile", "target_session_attrs"),
    *("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl"),
    *("channel_binding", "require_auth", "gssencmode", "krbsrvname"),
)
"""Options that are handed on to libpq. None of them is a secret."""

_OWN: Final = ("node", "deadline", "keep", "keep-days", "insecure", "unsafe")
_PASSWORD: Final = re.compile(r"[^/?@,\[]*?(:|%3[Aa])(?!\d{0,5}([/,?]|$))[^@]*@")
"""The beginning `USER:PASSWORD@`; the host, or one of several, may have a port."""

_NODE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_DIGITS: Final = re.compile(r"[0-9]{1,9}")
_DEADLINE_S: Final = 600


class PostgresUrl(NamedTuple):
    """A database, and the name of the node's backup in it.

    Attributes:
        libpq: the parameters of the connection, without a password.
        node: the name of the backup.
        deadline_s: how long to retry before the node is stopped.
        key_source: one of `KEY_SOURCES`, and the file's path; `None` without encryption.
        keep, keep_days: as for a `dir:` backup.
        insecure: whether a connection may go over a network without a verified certificate.
        unsafe: whether a server that may lose what it has answered is accepted.
    """

    libpq: dict[str, str]
    node: str
    deadline_s: int = _DEADLINE_S
    key_source: tuple[str, str] | None = None
    keep: int = 0
    keep_days: int = 0
    insecure: bool = False
    unsafe: bool = False

    @property
    def path(self) -> str:
        """The database and the backup, for messages."""
        at = self.libpq
        host = at.get("host") or (f"service {at['service']}" if "service" in at else "localhost")
        return f"{self.node} in {host}/{at.get('dbname', '')}"


def parse_postgres_url(url: str) -> PostgresUrl:
    """Parses a URL.

    Raises:
        BadUrl: the message says which part is wrong, and how to write it.
    """
    scheme, colon, rest = url.partition("://")
    if scheme != SCHEME or not colon:
        _bad(url, f"it does not start with {SCHEME}://")
    if any(sign.isspace() or not sign.isprintable() for sign in url) or "#" in url:
        _bad(url, "it contains a space, a control character or '#'; write %20 or %23 in a value")
    if _PASSWORD.match(rest) is not None:
        _bad(
            f"{SCHEME}://…",  # whatever signs are in the password
            "it has a password. Put it into the file ~/.pgpass of the user that runs the node "
            "(or name one with passfile=PATH), which only that user may read",
        )
    place, _, query = rest.partition("?")
    options = _options(url, query)
    libpq = {name: options[name] for name in LIBPQ if name in options}
    for name, value in _location(url, place).items():
        if name in libpq:
            _bad(url, f"{name} is given twice")
        libpq[name] = value
    if "dbname" not in libpq and "service" not in libpq:
        _bad(url, "the name of the database is missing")
    node = options.get("node", "")
    if _NODE_NAME.fullmatch(node) is None:
        _bad(url, "node=NAME must have 1 to 128 letters, digits, dots, dashes or underscores")
    deadline = options.get("deadline", str(_DEADLINE_S))
    if _DIGITS.fullmatch(deadline) is None or int(deadline) < 1:
        _bad(url, "the deadline must be a whole number of seconds, at least 1")
    sources = [(name, options[name]) for name in KEY_SOURCES if name in options]
    if len(sources) > 1 or any(not os.path.isabs(path) for _, path in sources):
        _bad(url, f"give one of {', '.join(KEY_SOURCES)}, with an absolute path")
    if "," in libpq.get("host", "") or "service" in libpq:
        libpq.setdefault("target_session_attrs", "read-write")
    return PostgresUrl(
        libpq,
        node,
        int(deadline),
        sources[0] if sources else None,
        _number(url, options, "keep"),
        _number(url, options, "keep-days"),
        _switch(url, options, "insecure"),
        _switch(url, options, "unsafe"),
    )


def _location(url: str, place: str) -> dict[str, str]:
    """The parameters before the question mark: user, hosts, ports and database."""
    found: dict[str, str] = {}
    servers, _, database = place.partition("/")
    user, at, hosts = servers.rpartition("@")
    if at:
        found["user"] = unquote(user)
    names, ports = [], []
    for server in hosts.split(",") if hosts else []:
        inner = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(?::(\d{1,5}))?", server)
        if inner is None:
            _bad(url, f"{server!r} is not HOST or HOST:PORT")
        names.append(unquote(inner[1].strip("[]")))
        ports.append(inner[2] or "")
    if names:
        found["host"] = ",".join(names)
    if any(ports):
        found["port"] = ",".join(ports)
    if database:
        found["dbname"] = unquote(database)
    return found


def _options(url: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        if name == "password":
            _bad(url, "a password does not belong into a URL: use ~/.pgpass or passfile=PATH")
        if name not in (*LIBPQ, *_OWN, *KEY_SOURCES):
            names = ", ".join((*_OWN, *KEY_SOURCES, *LIBPQ))
            _bad(url, f"unknown option {name!r}; the options are {names}")
        if not value:
            _bad(url, f"the option {name} has no value")
        if name in options:
            _bad(url, f"the option {name} is given twice")
        options[name] = unquote(value)
        if any(not sign.isprintable() for sign in options[name]):
            _bad(url, f"the option {name} contains a control character")
    return options


def _number(url: str, options: dict[str, str], name: str) -> int:
    value = options.get(name, "0")
    if not (value.isascii() and value.isdecimal()) or len(value) > 6:
        _bad(url, f"{name} must be a whole number")
    return int(value)


def _switch(url: str, options: dict[str, str], name: str) -> bool:
    if options.get(name, "no") not in {"yes", "no"}:
        _bad(url, f"{name} must be yes or no")
    return options.get(name) == "yes"


def _bad(url: str, why: str) -> NoReturn:
    raise BadUrl(f"{redacted(url)!r} cannot be understood: {why}. The form is {FORM}")
