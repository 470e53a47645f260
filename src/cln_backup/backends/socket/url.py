"""Parses `socket:HOST:PORT[?OPTION=VALUE[&…]]`."""

from __future__ import annotations

import os
import re
from typing import NamedTuple, NoReturn
from urllib.parse import unquote

from cln_backup.backends import redacted
from cln_backup.backends.local_url import KEY_SOURCES
from cln_backup.backends.place import Concession
from cln_backup.model.errors import BadUrl
from cln_backup.wire.address import Address, BadAddress, parse_address

_OPTIONS = (
    "proxy",
    "node",
    "token-file",
    "tls",
    "fingerprint",
    "pin",
    "ca",
    "deadline",
    "protocol",
    "insecure",
    *KEY_SOURCES,
    "keep",
    "keep-days",
)
_COUNT = re.compile(r"[0-9]{1,6}")
_NODE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DIGITS = re.compile(r"[0-9]{1,9}")
_DEADLINE_S = 600
_LOOPBACK = ("localhost", "::1")
FORM = "socket:HOST:PORT[?proxy=socks5:HOST:PORT][&OPTION=VALUE…]"


class SocketUrl(NamedTuple):
    """A server, and how to reach it.

    Attributes:
        proxy: a SOCKS5 proxy, which also resolves the server's name.
        node: name of the node, on a server with several.
        token_file: path of the file with the credential.
        tls: whether the connection is encrypted.
        fingerprint: SHA-256 of the server's certificate, in lower case hex.
        pin: path of a file that keeps the fingerprint found at the first connection.
        ca: path of the certificates to trust, instead of the system's.
        deadline_s: how long to retry a lost connection before the node is stopped.
        protocol: 1 when the extension shall not be offered.
        key_source, keep, keep_days: of a sealed backup, as in the URL of a `dir:` backup.
    """

    server: Address
    proxy: Address | None = None
    node: str = ""
    token_file: str | None = None
    tls: bool = False
    fingerprint: str | None = None
    pin: str | None = None
    ca: str | None = None
    deadline_s: int = _DEADLINE_S
    protocol: int = 2
    key_source: tuple[str, str] | None = None
    keep: int = 0
    keep_days: int = 0

    @property
    def concessions(self) -> frozenset[Concession]:
        """See `Place.concessions`."""
        given_up = {
            Concession.PLAIN: not self.tls,
            Concession.OPEN: self.token_file is None,
        }
        if _is_private(self.server):
            return frozenset()
        return frozenset(each for each, is_so in given_up.items() if is_so)


def parse_socket_url(url: str) -> SocketUrl:
    """Parses a URL.

    Raises:
        BadUrl: the message says which part is wrong, and how to write it.
    """
    scheme, _, rest = url.partition(":")
    if scheme != "socket":
        _bad(url, "it does not start with socket:")
    if any(sign.isspace() or not sign.isprintable() for sign in url):
        _bad(url, "it contains a space or a control character")
    place, question_mark, query = rest.partition("?")
    if "#" in url:
        _bad(url, "it has a '#'; write %23 in a value")
    if place.startswith("//"):
        _bad(url, "there are no slashes after socket:")
    server = _address(url, place, "the server")
    options = _options(url, query) if question_mark else {}
    proxy = None
    if "proxy" in options:
        kind, colon, proxy_place = options["proxy"].partition(":")
        if kind != "socks5" or not colon:
            _bad(url, "the proxy must be socks5:HOST:PORT; no other kind is supported")
        proxy = _address(url, proxy_place, "the proxy")
    if server.host.lower().endswith(".onion") and proxy is None:
        _bad(url, "an onion name needs a Tor proxy: add ?proxy=socks5:127.0.0.1:9050")
    return _checked(url, server, proxy, options)


def _checked(
    url: str, server: Address, proxy: Address | None, options: dict[str, str]
) -> SocketUrl:
    fingerprint = options.get("fingerprint")
    if fingerprint is not None:
        fingerprint = fingerprint.lower().removeprefix("sha256:").replace(":", "")
        if re.fullmatch("[0-9a-f]{64}", fingerprint) is None:
            _bad(url, "a fingerprint has 64 hexadecimal digits, as the server logs it")
    pinned = [name for name in ("fingerprint", "pin", "ca") if name in options]
    if len(pinned) > 1:
        _bad(url, f"{' and '.join(pinned)} cannot be combined")
    tls = _switch(url, options, "tls") if "tls" in options else bool(pinned)
    if pinned and not tls:
        _bad(url, f"{pinned[0]} needs TLS, but tls=no was given")
    node = options.get("node", "")
    if "node" in options and _NODE_NAME.fullmatch(node) is None:
        _bad(url, "a node's name must have 1 to 64 letters, digits, dots, dashes or underscores")
    deadline = options.get("deadline", str(_DEADLINE_S))
    if _DIGITS.fullmatch(deadline) is None or int(deadline) < 1:
        _bad(url, "the deadline must be a whole number of seconds, at least 1")
    protocol = options.get("protocol", "2")
    if protocol not in {"1", "2"}:
        _bad(url, "the protocol must be 1 or 2")
    named = [name for name in ("node", "token-file") if name in options]
    if protocol == "1" and named:
        _bad(url, f"protocol 1 does not support {named[0]}")
    insecure = "insecure" in options and _switch(url, options, "insecure")
    if "token-file" in options and not (tls or insecure or _is_private(server)):
        _bad(
            url,
            "the token would be sent in plain text: add tls=yes with a fingerprint, or "
            "insecure=yes if a tunnel of your own (WireGuard, SSH) encrypts the connection",
        )
    return SocketUrl(
        server,
        proxy,
        node,
        options.get("token-file"),
        tls,
        fingerprint,
        options.get("pin"),
        options.get("ca"),
        int(deadline),
        int(protocol),
        _key_source(url, options, protocol),
        _count(url, options, "keep"),
        _count(url, options, "keep-days"),
    )


def _key_source(url: str, options: dict[str, str], protocol: str) -> tuple[str, str] | None:
    found = [(name, options[name]) for name in KEY_SOURCES if name in options]
    if len(found) > 1:
        _bad(url, f"{found[0][0]} and {found[1][0]} cannot be combined")
    for name, path in found:
        if not os.path.isabs(path):
            _bad(url, f"{name} needs an absolute path")
        if protocol == "1":
            _bad(url, f"protocol 1 has no sealed backups, so it does not support {name}")
    return found[0] if found else None


def _count(url: str, options: dict[str, str], name: str) -> int:
    value = options.get(name, "0")
    if _COUNT.fullmatch(value) is None:
        _bad(url, f"{name} must be a whole number")
    return int(value)


def _is_private(server: Address) -> bool:
    """Whether the connection cannot be eavesdropped on: this machine, or an onion service."""
    host = server.host.lower()
    is_loopback = host in _LOOPBACK or re.fullmatch(r"127(\.\d{1,3}){1,3}", host) is not None
    return is_loopback or host.endswith(".onion")


def _options(url: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in query.split("&"):
        name, equals, value = pair.partition("=")
        if name not in _OPTIONS:
            _bad(url, f"unknown option {name!r}; the options are {', '.join(_OPTIONS)}")
        if not equals or not value:
            _bad(url, f"the option {name} has no value")
        if name in options:
            _bad(url, f"the option {name} is given twice")
        options[name] = unquote(value)
        if any(not sign.isprintable() for sign in options[name]):
            _bad(url, f"the option {name} contains a control character")
    return options


def _switch(url: str, options: dict[str, str], name: str) -> bool:
    if options[name] not in {"yes", "no"}:
        _bad(url, f"{name} must be yes or no")
    return options[name] == "yes"


def _address(url: str, place: str, whose: str) -> Address:
    try:
        return parse_address(place, whose)
    except BadAddress as error:
        _bad(url, str(error))


def _bad(url: str, why: str) -> NoReturn:
    raise BadUrl(f"{redacted(url)!r} cannot be understood: {why}. The form is {FORM}")
