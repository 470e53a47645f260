from __future__ import annotations

import pytest

from cln_backup.backends.socket.url import SocketUrl, parse_socket_url
from cln_backup.model.errors import BadUrl
from cln_backup.wire.address import Address


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("socket:127.0.0.1:1234", SocketUrl(Address("127.0.0.1", 1234))),
        ("socket:[::1]:1235", SocketUrl(Address("::1", 1235))),
        ("socket:[fe80::1%eth0]:1", SocketUrl(Address("fe80::1%eth0", 1))),
        ("socket:backup.local:1236", SocketUrl(Address("backup.local", 1236))),
        (
            "socket:backupserver.onion:1234?proxy=socks5:127.0.0.1:9050",
            SocketUrl(Address("backupserver.onion", 1234), Address("127.0.0.1", 9050)),
        ),
        (
            "socket:a:1?proxy=socks5:[::1]:9050&deadline=30",
            SocketUrl(Address("a", 1), Address("::1", 9050), deadline_s=30),
        ),
        (
            "socket:a:1?node=alice&token-file=/x%20y&fingerprint=sha256:" + "AB" * 32,
            SocketUrl(
                Address("a", 1),
                node="alice",
                token_file="/x y",  # noqa: S106 - a path
                tls=True,
                fingerprint="ab" * 32,
            ),
        ),
        ("socket:a:1?tls=no&protocol=1", SocketUrl(Address("a", 1), protocol=1)),
    ],
)
def test_urls(url: str, parsed: SocketUrl) -> None:
    assert parse_socket_url(url) == parsed


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("none", "does not start with"),
        ("socket:", "no host"),
        ("socket:127.0.0.1", "no port"),
        ("socket:127.0.0.1:", "no port"),
        ("socket::1234", "no host"),
        ("socket:::1:1234", "must be in brackets"),
        ("socket:[::1]", "no port"),
        ("socket:[::1]:", "no port"),
        ("socket:[::1:1234", "not closed"),
        ("socket:[127.0.0.1]:1", "not a valid IPv6 address"),
        ("socket:999.0.0.1:1", "not a valid address or host name"),
        ("socket:a b:1", "a space"),
        ("socket:user@host:1", "not a valid address or host name"),
        ("socket://host:1", "no slashes"),
        ("socket:127.0.0.1:12bla", "not a number"),
        ("socket:127.0.0.1:0", "not a number"),
        ("socket:127.0.0.1:65536", "not a number"),
        ("socket:127.0.0.1:\u0661", "not a number"),
        ("socket:a:1?dummy=value", "unknown option 'dummy'"),
        ("socket:a:1?", "unknown option ''"),
        ("socket:a:1?node", "no value"),
        ("socket:a:1?node=", "no value"),
        ("socket:a:1?node=a&node=b", "given twice"),
        ("socket:a:1?node=a/b", "node's name"),
        ("socket:a:1?proxy=socks5", "socks5:HOST:PORT"),
        ("socket:a:1?proxy=socks5:", "the proxy has no host"),
        ("socket:a:1?proxy=socks5:127.0.0.1:", "the proxy has no port"),
        ("socket:a:1?proxy=socks6:127.0.0.1:9050", "no other kind"),
        ("socket:a.onion:1", "needs a Tor proxy"),
        ("socket:a:1?tls=maybe", "yes or no"),
        ("socket:a:1?fingerprint=abc", "64 hexadecimal"),
        ("socket:a:1?pin=/a&ca=/b", "cannot be combined"),
        ("socket:a:1?tls=no&pin=/a", "needs TLS, but"),
        ("socket:a:1?deadline=0", "at least 1"),
        ("socket:a:1?deadline=soon", "whole number"),
        ("socket:a:1?protocol=3", "1 or 2"),
        ("socket:a:1?protocol=1&node=a", "does not support node"),
        ("socket:a:1?token-file=/a", "in plain text"),
        ("socket:a:1#x", "'#'"),
        ("socket:a:1?pin=%0a", "control character"),
    ],
)
def test_malformed_urls(url: str, why: str) -> None:
    with pytest.raises(BadUrl, match="cannot be understood") as found:
        parse_socket_url(url)
    assert why in str(found.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_token_may_go_where_nobody_listens(host: str) -> None:
    for url in (f"socket:{host}:1?token-file=/a", "socket:a:1?token-file=/a&insecure=yes"):
        assert parse_socket_url(url).token_file is not None
