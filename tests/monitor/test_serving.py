"""The page over HTTP: headers, names, methods, and requests that mean it no good."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from cln_backup.model.health import Level
from cln_backup.monitor.page.view import NodeView
from cln_backup.wire.address import Address
from cln_backup.wire.listening import bind
from tests.monitor import examples
from tests.monitor.serving import Values, exchange, get, page_of
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

_STATE_FIELDS = {
    "at", "protected", "halted", "ended", "backend_url", "version", "backupsize", "version_count",
    "last_change_age_s", "last_compaction_at", "compacting", "follower", "proven_version",
    "proof_lag_s", "alarm", "drilled_at", "drill_passed", "answer_p50_us", "answer_p99_us",
    "release", "notices",
}  # fmt: skip


@pytest.fixture(scope="module")
def node() -> Iterator[int]:
    with page_of(lambda now: [examples.good(now)], names=["node.lan", "Abc.Onion"]) as (_, port):
        yield port


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with page_of(examples.server) as (_, port):
        yield port


@pytest.mark.parametrize("path", ["/", "/state.json", "/missing"])
def test_headers_are_strict_on_every_answer(node: int, path: str) -> None:
    _, headers, _ = get(node, path)
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert not {"set-cookie", "access-control-allow-origin", "etag"} & set(headers)
    assert headers["server"] == "cln-backup"


def test_a_node_and_its_spans(node: int) -> None:
    status, headers, html = get(node, "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "<h1>Your node is safe</h1>" in html
    assert re.search(r'aria-current="true">24 hours<', html)
    assert re.search(r'aria-current="true">90 days<', get(node, "/?span=quarter")[2])
    assert re.search(r'aria-current="true">24 hours<', get(node, "/?span=never")[2])
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", html)


def test_an_overview_and_a_page_for_each_node(server: int) -> None:
    html = get(server, "/")[2]
    assert "<h1>Not all backups are safe</h1>" in html
    links = re.findall(r'href="(/node\?node=\w+)"', html)
    assert len(links) == 12
    assert links[0] == "/node?node=carol"  # the worst first
    assert "The backup of carol is not safe" in get(server, links[0])[2]
    assert 'href="?node=carol&amp;span=week"' in get(server, links[0])[2]
    for missing in ("/node", "/node?node=nobody", "/state.json?node=nobody", "/node/alice", "/%2F"):
        assert get(server, missing)[0] == 404


def test_the_shape_of_the_json(node: int, server: int) -> None:
    status, headers, text = get(node, "/state.json")
    assert (status, headers["content-type"]) == (200, "application/json; charset=utf-8")
    told = json.loads(text)
    assert set(told) == {"format", "release", "title", "at", "verdict", "revision", "nodes"}
    assert (told["format"], told["verdict"], told["title"]) == (1, "good", "raspberrypi bitcoin")
    [of] = told["nodes"]
    assert set(of) == {"name", "verdict", "short", "since", "findings", "state", "shown"}
    assert of["findings"] == [
        {
            "code": "not-protected",  # of which it is the good side
            "level": "good",
            "text": "Each change is stored before the node commits it.",
            "remedy": "",
        }
    ]
    assert set(of["state"]) >= _STATE_FIELDS
    assert all(isinstance(shown, str) for shown in of["shown"].values())
    assert of["shown"]["version"] == "1,284,310"
    many = json.loads(get(server, "/state.json")[2])
    assert [each["name"] for each in many["nodes"]] == list(examples.NAMES)
    assert many["verdict"] == "bad"
    one = json.loads(get(server, "/state.json?node=niaj")[2])
    assert [each["verdict"] for each in one["nodes"]] == ["unknown"]


def test_a_state_that_is_old_is_unknown_and_never_safe() -> None:
    with page_of(lambda now: [examples.unknown(now)]) as (values, port):
        _, _, html = get(port, "/")
        assert "It is unknown whether your node is safe" in html
        assert "Each change is stored" not in html
        assert json.loads(get(port, "/state.json")[2])["verdict"] == "unknown"
        values.make = lambda _: [NodeView("")]
        assert "It is unknown whether your node is safe" in get(port, "/")[2]
        values.make = lambda _: []
        assert "No node has reported yet" in get(port, "/")[2]


def test_only_get_and_head(node: int) -> None:
    status, headers, content = get(node, "/", method="HEAD")
    assert (status, content) == (200, "")
    assert int(headers["content-length"]) > 10_000
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW"):
        status, headers, _ = get(node, "/", method=method)
        assert (method, status, headers["allow"]) == (method, 405, "GET, HEAD")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:9736", "node.lan", "abc.onion.:80"]
)
def test_names_of_this_machine_are_answered(node: int, host: str) -> None:
    assert get(node, "/", host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "localhost.evil.example", "192.0.2.7", "[2001:db8::1]", "127.0.0.1.evil",
        "", "localhost:port", "localhost/..", "@localhost", "2130706433", "node.lan@evil.example",
    ],
)  # fmt: skip
def test_other_names_are_refused(node: int, host: str) -> None:
    for path in ("/", "/state.json"):
        status, _, text = get(node, path, host)
        assert status == 421
        assert "1,284,310" not in text


def test_no_name_or_two_are_refused(node: int) -> None:
    assert exchange(node, b"GET / HTTP/1.1\r\n\r\n")[0] == 421
    twice = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert exchange(node, twice)[0] == 421


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 9_000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: x\r\n" * 200 + b"\r\n", 431),
        (b"GET /?" + b"a=b&" * 100 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 505),
    ],
)
def test_requests_that_are_too_large_or_not_http(
    node: int, request_bytes: bytes, status: int
) -> None:
    said, headers, text = exchange(node, request_bytes)
    assert said == status
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert len(text) < 100
    assert get(node, "/")[0] == 200


def test_many_slow_clients_take_few_threads(node: int) -> None:
    before = threading.active_count()
    with contextlib.ExitStack() as held:
        for _ in range(50):
            sock = held.enter_context(socket.create_connection(("127.0.0.1", node)))
            with contextlib.suppress(OSError):
                sock.sendall(b"GET / HTTP/1.1\r\nX: ")
        assert threading.active_count() <= before + 20
    wait_until(lambda: _answers(node), "The page is not served again.")


def _answers(port: int) -> bool:
    try:
        return get(port, "/")[0] == 200
    except (OSError, ValueError, IndexError):
        return False


def test_texts_of_an_attacker_are_escaped_and_secrets_left_out() -> None:
    with page_of(lambda now: [examples.hostile(now)]) as (_, port):
        overview = get(port, "/")[2]
        address = re.search(r'href="(/node\?node=[^"]+)"', overview)
        assert address is not None
        page = get(port, address[1])[2]
        for html in (overview, page):
            assert html.count("<script>") == 1
            assert "document.title=&#39;pwned&#39;" in html
            assert "{{ 7*7 }}" in html
        told = get(port, "/state.json")[2]
        for text in (overview, page, told):
            assert "hunter2" not in text
        assert json.loads(told)["nodes"][0]["name"] == examples.HOSTILE


def test_an_address_in_use_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    from cln_backup.monitor.page import serving

    [taken] = bind(Address("127.0.0.1", 0))
    port = taken.getsockname()[1]
    values = Values(lambda now: [examples.good(now)])
    page = serving.Page(values, "title", Address("127.0.0.1", port))
    page.start()
    try:
        wait_until(lambda: "cannot be served yet" in caplog.text, "No warning.")
        taken.close()
        wait_until(lambda: _answers(port), "The page is not served after all.")
    finally:
        page.stop()


def test_the_level_of_a_halt_stays_when_nothing_more_is_told() -> None:
    with page_of(lambda now: [examples.bad(now)]) as (values, port):
        assert "Your node is not safe" in get(port, "/")[2]
        values.make = lambda now: [
            examples.bad(now)._replace(state=examples.state(now - 4000, halted="no space"))
        ]
        assert json.loads(get(port, "/state.json")[2])["verdict"] == Level.BAD.value
