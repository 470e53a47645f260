from __future__ import annotations

import pytest

from simulator.wire import MalformedError, Message, MessageStream

ONE = b'{"jsonrpc":"2.0","id":"a","result":{"x":["}{",{"y":"\\"\\\\"}]}}'
TWO = b'{"jsonrpc": "2.0",\n\n "id": "b\xc3\xa4"}'


def taken(*chunks: bytes) -> list[Message]:
    stream, found = MessageStream(), []
    for chunk in chunks:
        stream.feed(chunk)
        while (message := stream.next()) is not None:
            found.append(message)
    return found


@pytest.mark.parametrize("separator", [b"\n\n", b"\n", b"", b"  \n\n\n "])
def test_messages_need_no_separator(separator: bytes) -> None:
    assert [message["id"] for message in taken(ONE + separator + TWO + separator)] == ["a", "bä"]


def test_messages_may_come_in_any_pieces() -> None:
    data = ONE + b"\n\n" + TWO + ONE
    for size in (1, 2, 7, 30):
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        assert [message["id"] for message in taken(*pieces)] == ["a", "bä", "a"]


def test_nothing_is_looked_at_before_a_brace_closes() -> None:
    assert taken(b"hello") == []
    with pytest.raises(MalformedError, match="Failed to parse"):
        taken(b"hello ", ONE)


@pytest.mark.parametrize(
    "data", [b'{"jsonrpc":"2.0","id":tru}', b"[1]}", b'{"jsonrpc":"2.0","id":"\xe9"}\n\n']
)
def test_what_is_no_json_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError, match="Failed to parse"):
        taken(data)


def test_a_message_without_jsonrpc_is_malformed() -> None:
    with pytest.raises(MalformedError, match='does not contain "jsonrpc"'):
        taken(b'{"id":"a","result":{}}\n\n')


def test_control_characters_in_strings_are_taken() -> None:
    assert taken(b'{"jsonrpc":"2.0","text":"a\tb\nc"}')[0]["text"] == "a\tb\nc"
